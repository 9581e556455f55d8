#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Builds libgetbuf and installs it: headers, libraries, getbuf.pc, man pages.
#
#   PREFIX      where it will be (default /usr/local)
#   LIBDIR      its libraries (default PREFIX/lib)
#   INCLUDEDIR  its headers (default PREFIX/include)
#   MANDIR      its man pages (default PREFIX/share/man)
#   DESTDIR     put in front of all of these, for packagers
#   CARGO       the cargo to build with; CARGO_TARGET_DIR is honoured
#
# Nothing is built where GETBUF_BUILT names a folder with libgetbuf.so and libgetbuf.a.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
prefix=${PREFIX:-/usr/local}
libdir=${LIBDIR:-$prefix/lib}
includedir=${INCLUDEDIR:-$prefix/include}
mandir=${MANDIR:-$prefix/share/man}
destdir=${DESTDIR:-}

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
soname=libgetbuf.so.0

if [ -n "${GETBUF_BUILT:-}" ]; then
	built=$GETBUF_BUILT
else
	cd "$root"
	"${CARGO:-cargo}" build --quiet --locked --profile capi --package getbuf-capi
	built=${CARGO_TARGET_DIR:-$root/target}/capi
fi

lib=$destdir$libdir
include=$destdir$includedir
man=$destdir$mandir
install -d "$lib/pkgconfig" "$include" "$man/man3" "$man/man7"

install -m 755 "$built/libgetbuf.so" "$lib/libgetbuf.so.$version"
ln -sf "libgetbuf.so.$version" "$lib/$soname"
ln -sf "$soname" "$lib/libgetbuf.so"
install -m 644 "$built/libgetbuf.a" "$lib/libgetbuf.a"

for header in getbuf.h getbuf_prep.h getbuf_uapi.h; do
	install -m 644 "$root/include/$header" "$include/$header"
done

sed -e "s|@prefix@|$prefix|" -e "s|@libdir@|$libdir|" -e "s|@includedir@|$includedir|" \
	-e "s|@version@|$version|" "$here/getbuf.pc.in" >"$lib/pkgconfig/getbuf.pc"
chmod 644 "$lib/pkgconfig/getbuf.pc"

for page in "$here"/man/*.[37]; do
	file=$(basename "$page")
	section=${file##*.}
	install -m 644 "$page" "$man/man$section/$file"
	# Every name in its NAME line leads to the page.
	for name in $(sed -n '/^\.SH NAME$/{n;s/ \\-.*//;s/,//g;p;}' "$page"); do
		alias=$man/man$section/$name.$section
		if [ "$name.$section" != "$file" ]; then
			echo ".so man$section/$file" >"$alias"
			chmod 644 "$alias"
		fi
	done
done
