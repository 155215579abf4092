// SPDX-License-Identifier: MIT OR Apache-2.0
//! The namespace that a log makes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Problem;
use crate::map::Map;

/// Name of a node within one [`Tree`]; the same for the same log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

/// A file or directory.
#[derive(Clone, Debug)]
pub struct Node {
    /// Index of its log entry; `None` for the root.
    pub index: Option<u64>,
    /// Its directory; the root is its own.
    pub parent: NodeId,
    /// Its name there; the root has none.
    pub name: Arc<[u8]>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub kind: Kind,
}

/// The part of a node that differs between files and directories.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Kind {
    Dir(BTreeMap<Arc<[u8]>, NodeId>),
    File { size: u64, map: Map },
}

/// All nodes.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        let kind = Kind::Dir(BTreeMap::new());
        let root = Node {
            index: None,
            parent: Self::ROOT,
            name: [].into(),
            mode: 0o755,
            uid: 0,
            gid: 0,
            kind,
        };
        Self { nodes: vec![root] }
    }
}

impl Tree {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// A node; `None` for an id of another tree.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    /// The entry `name` of directory `parent`.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.get(parent)?.kind {
            Kind::Dir(children) => children.get(name).copied(),
            Kind::File { .. } => None,
        }
    }

    /// The node at `path`; the empty path is the root.
    pub fn resolve(&self, path: &[u8]) -> Option<NodeId> {
        path.split(|&b| b == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(Self::ROOT, |dir, name| self.lookup(dir, name))
    }

    /// All nodes but the root with their paths, in the order of the log.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes_from(0)
    }

    /// The same without the first `count`.
    pub fn nodes_from(&self, count: usize) -> impl Iterator<Item = (NodeId, &Node)> {
        let first = count.saturating_add(1);
        let ids = (0..=u32::MAX).skip(first).map(NodeId);
        ids.zip(self.nodes.get(first..).unwrap_or_default())
    }

    /// All files and directories with their paths, directories before what is
    /// in them, names in byte order.
    pub fn walk(&self) -> Vec<(Vec<u8>, NodeId)> {
        let mut out = Vec::new();
        let mut todo = vec![(Vec::new(), Self::ROOT)];
        while let Some((path, id)) = todo.pop() {
            if let Some(Kind::Dir(children)) = self.get(id).map(|node| &node.kind) {
                for (name, child) in children.iter().rev() {
                    let sep: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    todo.push(([&path, sep, name].concat(), *child));
                }
            }
            if id != Self::ROOT {
                out.push((path, id));
            }
        }
        out
    }

    /// Number of nodes, the root included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() <= 1
    }

    /// Add `node` at `path`, which was checked, and which says its parent and name. A directory that exists already
    /// is left as it is. Returns whether anything was added.
    pub(crate) fn insert(&mut self, path: &[u8], mut node: Node) -> Result<bool, Problem> {
        let split = path.iter().rposition(|&b| b == b'/');
        let (dir, name) = match split {
            Some(at) => (path.get(..at), path.get(at.saturating_add(1)..)),
            None => (Some(&[][..]), Some(path)),
        };
        let (dir, name) = (dir.unwrap_or_default(), name.unwrap_or_default());
        let parent = self.resolve(dir).ok_or(Problem::NoParent)?;
        if let Some(old) = self.lookup(parent, name).and_then(|id| self.get(id)) {
            let first = old.index.unwrap_or_default();
            return match (&old.kind, &node.kind) {
                (Kind::Dir(_), Kind::Dir(_)) => Ok(false),
                (Kind::File { .. }, Kind::Dir(_)) => Err(Problem::NotDirectory { first }),
                _ => Err(Problem::Duplicate { first }),
            };
        }
        // A log has room for fewer entries than ids: 16 Mi per 8 GiB.
        let id = NodeId(u32::try_from(self.nodes.len()).map_err(|_| Problem::NoParent)?);
        node.parent = parent;
        node.name = name.into();
        let name = Arc::clone(&node.name);
        match self
            .nodes
            .get_mut(parent.0 as usize)
            .map(|node| &mut node.kind)
        {
            Some(Kind::Dir(children)) => children.insert(name, id),
            _ => return Err(Problem::NoParent),
        };
        self.nodes.push(node);
        Ok(true)
    }
}
