// SPDX-License-Identifier: MIT OR Apache-2.0
//! Long work on many files: several at a time.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::anyhow;

/// How many files are worked on at a time.
#[derive(clap::Args, Clone, Copy)]
pub struct Threads {
    /// Files to work on at a time [default: one for each processor].
    #[arg(short, long)]
    threads: Option<NonZeroUsize>,
}

impl Threads {
    /// Does `work` for each of `items`. After an error no further item is begun; one of the errors is returned.
    pub fn each<T: Sync>(
        self,
        items: &[T],
        work: impl Fn(&T) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<()> {
        let processors = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = self.threads.map_or_else(processors, NonZeroUsize::get);
        let next = AtomicUsize::new(0);
        let worker = || {
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = work(item) {
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.min(items.len()))
                .map(|_| scope.spawn(worker))
                .collect();
            let panicked = |_| Err(anyhow!("a worker thread has panicked"));
            let mut workers = workers.into_iter();
            workers.try_for_each(|worker| worker.join().unwrap_or_else(panicked))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    fn threads(count: usize) -> Threads {
        Threads {
            threads: NonZeroUsize::new(count),
        }
    }

    #[test]
    fn each_item_once_and_several_at_a_time() {
        let done: Vec<_> = (0..30).map(|_| AtomicUsize::new(0)).collect();
        let three = Barrier::new(3);
        threads(3)
            .each(&done, |item| {
                item.fetch_add(1, Ordering::Relaxed);
                three.wait();
                Ok(())
            })
            .unwrap();
        assert!(done.iter().all(|item| item.load(Ordering::Relaxed) == 1));
        threads(3).each(&[0; 0], |_| Ok(())).unwrap();
    }

    #[test]
    fn an_error_ends_it() {
        let done = AtomicUsize::new(0);
        let error = threads(1).each(&[1, 2, 3], |&item| {
            done.fetch_add(1, Ordering::Relaxed);
            if item == 2 {
                Err(anyhow!("item {item}"))
            } else {
                Ok(())
            }
        });
        assert_eq!(error.unwrap_err().to_string(), "item 2");
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }
}
