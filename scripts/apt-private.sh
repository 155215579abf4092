#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# apt-private.sh SUITE... -- download PACKAGE...   the .deb files, into .
# apt-private.sh SUITE... -- closure PACKAGE...    the same with all they depend on
# apt-private.sh SUITE... -- install PACKAGE...    on this machine (root)
#
# Debian packages from suites that this machine's apt is not set up for, without
# touching that set-up: sources, lists and archives lie in the cache. The
# archive's address is the one that this machine's apt uses for Debian itself.

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

targets() {
	apt-get indextargets "$@" --format "\$(ORIGIN) \$(RELEASE) \$(COMPONENT) \$(REPO_URI)" 2>/dev/null || true
}

# The address of the machine's Debian archive. The origin is known only after
# an `apt-get update`; before that the machine's own code name in component main
# serves.
archive() {
	{ targets && targets --no-release-info; } |
		awk -v c="$(os_release VERSION_CODENAME)" '$3 != "main" || $2 ~ /security/ { next }
			$1 == "Debian" { d = d ? d : $NF }
			$2 == c { m = m ? m : $NF }
			END { print d ? d : m }'
}

# write_config DIR: sources and an apt.conf of their own in DIR.
write_config() {
	local dir=$1
	mkdir -p "$dir/sources.list.d" "$dir/lists/partial" "$dir/cache/archives/partial"
	cat >"$dir/sources.list.d/debian.sources" <<-SOURCES
		Types: deb
		URIs: $uri
		Suites: ${suites[*]}
		Components: main
		Architectures: amd64
		Signed-By: $KEYRING
	SOURCES
	# The hooks of container images delete the host's downloaded archives.
	cat >"$dir/apt.conf" <<-CONF
		#clear APT::Update::Post-Invoke;
		#clear APT::Update::Post-Invoke-Success;
		Dir::Etc::SourceList "/dev/null";
		Dir::Etc::SourceParts "$dir/sources.list.d";
		Dir::Etc::Preferences "/dev/null";
		Dir::Etc::PreferencesParts "/dev/null";
		Dir::State::Lists "$dir/lists";
		Dir::Cache "$dir/cache";
		APT::Update::Error-Mode "any";
		APT::Sandbox::User "root";
		Acquire::Languages "none";
		Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
		Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
		Acquire::Retries "2";
		Dpkg::Use-Pty "false";
	CONF
}

apt() {
	run_logged "$log" apt-get -c "$dir/apt.conf" "$@"
}

# What apt said went wrong, on one line.
reason() {
	sed -n 's/^[EW]: *//p' "$log" | tail -n 1
}

suites=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
	suites+=("$1")
	shift
done
if [ ${#suites[@]} -eq 0 ] || [ $# -lt 3 ]; then
	die "usage: apt-private.sh SUITE... -- download|closure|install PACKAGE..."
fi
verb=$2
shift 2

[ -r "$KEYRING" ] || die "$KEYRING is missing: apt-get install debian-archive-keyring"
uri=$(archive)
[ -n "$uri" ] || die "this machine's apt knows no Debian archive: add one to /etc/apt/sources.list.d and run apt-get update"

dir=$CACHE/apt/$(printf '%s\n' "${suites[@]}" | paste -sd +)
log=$dir/log
lock apt
write_config "$dir"
apt update ||
	die "cannot reach the Debian archive at $uri for ${suites[*]} (apt: $(reason)): check the network and apt's proxy"

case $verb in
download)
	apt -o Dir::State::status=/dev/null download "$@" ||
		die "cannot download $* from ${suites[*]} at $uri (apt: $(reason))"
	;;
closure)
	rm -f "$dir"/cache/archives/*.deb
	apt -o Dir::State::status=/dev/null -o APT::Install-Recommends=false \
		-o Debug::NoLocking=true --download-only -y install "$@" ||
		die "cannot download $* with dependencies from ${suites[*]} at $uri (apt: $(reason))"
	mv "$dir"/cache/archives/*.deb .
	;;
install)
	DEBIAN_FRONTEND=noninteractive apt -y --no-install-recommends -t "${suites[-1]}" install "$@" ||
		die "cannot install $* from ${suites[*]} at $uri (apt: $(reason)): see $log"
	;;
*)
	die "apt-private.sh knows download, closure and install, not '$verb'"
	;;
esac
