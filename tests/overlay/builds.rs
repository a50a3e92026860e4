//! Real build systems, over the whole file system: they print what they print natively, the host stays as it was,
//! and what they made works once it is committed.

use super::common::{have, skip};
use super::desk::{Desk, same_trees, tree};

/// A small program of three files in C.
const SOURCES: &str = r#"
    umask 022; mkdir home
    echo 'int one(void), two(void); int main(void) { return one() + two() - 3; }' > main.c
    echo 'int one(void) { return 1; }' > one.c
    echo 'int two(void) { return 2; }' > two.c
"#;

const AUTOTOOLS: &str = r#"
    cat > configure.ac <<'END'
AC_INIT([tiny], [1.0])
AM_INIT_AUTOMAKE([foreign])
AC_PROG_CC
AC_CHECK_HEADERS([stdlib.h unistd.h sys/stat.h])
AC_CHECK_FUNCS([strdup fork mkstemp])
AC_CONFIG_FILES([Makefile])
AC_OUTPUT
END
    printf '%s\n' 'bin_PROGRAMS = tiny' 'tiny_SOURCES = main.c one.c two.c' 'TESTS = tiny' > Makefile.am
"#;

const CMAKE: &str = r#"
    cat > CMakeLists.txt <<'END'
cmake_minimum_required(VERSION 3.10)
project(tiny C)
enable_testing()
add_library(numbers STATIC one.c two.c)
add_executable(tiny main.c)
target_link_libraries(tiny numbers)
add_test(NAME runs COMMAND tiny)
install(TARGETS tiny DESTINATION bin)
END
"#;

const DEBIAN: &str = r#"
    mkdir -p tiny-1.0/debian/source; mv *.c *.ac Makefile.am tiny-1.0; cd tiny-1.0
    cat > debian/control <<'END'
Source: tiny
Maintainer: A <a@example.org>
Build-Depends: debhelper-compat (= 13)
Standards-Version: 4.6.0

Package: tiny
Architecture: any
Depends: ${misc:Depends}
Description: tiny
 tiny
END
    printf '#!/usr/bin/make -f\n%%:\n\tdh $@\n' > debian/rules; chmod +x debian/rules
    printf 'tiny (1.0) unstable; urgency=low\n\n  * x\n\n -- A <a@example.org>  Thu, 01 Jan 2026 00:00:00 +0000\n' \
        > debian/changelog
    echo '3.0 (native)' > debian/source/format
"#;

const CARGO: &str = r#"
    mkdir -p src five/src home
    printf '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n[dependencies]\nfive = { path = "five" }\n' \
        > Cargo.toml
    cat > build.rs <<'END'
fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    std::fs::write(format!("{out}/made.rs"), "pub const MADE: u32 = 7;").unwrap();
}
END
    echo 'include!(concat!(env!("OUT_DIR"), "/made.rs")); fn main() { println!("{} {}", MADE, five::five!()); }' > src/main.rs
    printf '[package]\nname = "five"\nversion = "0.1.0"\nedition = "2021"\n[lib]\nproc-macro = true\n' > five/Cargo.toml
    echo 'use proc_macro::TokenStream; #[proc_macro] pub fn five(_: TokenStream) -> TokenStream { "5".parse().unwrap() }' \
        > five/src/lib.rs
"#;

const NPM: &str = r#"
    mkdir -p dep home
    cat > dep/package.json <<'END'
{"name": "dep", "version": "1.0.0",
 "scripts": {"postinstall": "node -e \"require('fs').writeFileSync('made-by-script', 'x')\""}}
END
    echo 'module.exports = 5' > dep/index.js
    echo '{"name": "app", "version": "1.0.0", "dependencies": {"dep": "file:dep-1.0.0.tgz"}}' > package.json
    export HOME=$PWD/home
    (cd dep && npm pack --silent) > /dev/null; mv dep/dep-1.0.0.tgz .; rm -r dep
    npm install --package-lock-only --offline --silent
"#;

const PYTHON: &str = r#"
    mkdir -p tiny home; echo 'X = 5' > tiny/__init__.py
    printf 'from setuptools import setup, Extension\nsetup(name="tiny", version="1.0", packages=["tiny"], %s)\n' \
        'ext_modules=[Extension("tiny.c", ["c.c"])]' > setup.py
    printf '#include <Python.h>\nstatic struct PyModuleDef it = {PyModuleDef_HEAD_INIT, "c", 0, -1, 0};\n%s\n' \
        'PyMODINIT_FUNC PyInit_c(void) { return PyModule_Create(&it); }' > c.c
"#;

const GO: &str = r#"
    mkdir home; printf 'module tiny\ngo 1.19\n' > go.mod
    cat > main.go <<'END'
package main

import (
	"encoding/json"
	"fmt"
)

func main() {
	text, _ := json.Marshal(map[string]int{"a": 1})
	fmt.Println(string(text))
}
END
"#;

const GIT: &str = r#"
    git init -q; git config user.email a@b; git config user.name a
    echo x > a; git add a; git commit -qm a; mkdir -p junk/deep; echo y > junk/deep/f; echo z > loose
"#;

/// Runs `script` natively and puts the tree back, then over everything; `check` is run natively after each.
#[track_caller]
fn builds(name: &str, needs: &[&str], seed: &[&str], script: &str, check: &str) {
    if !needs.iter().all(|program| have(program)) {
        return;
    }
    let desk = Desk::seeded(name, &seed.concat());
    let before = tree(&desk.host);
    let natively = desk.sh(&desk.host, script);
    natively.success();
    let checked = desk.sh(&desk.host, check);
    checked.success();
    desk.sh(desk.space.path(), "rm -r host && cp -a copy host").success();

    let run = ["run", "--id", "build", "--overlay", "/", "--", "bash", "-euc", script];
    desk.words(&run).success().expect_out(&natively.out());
    same_trees("the host's tree has changed", &tree(&desk.host), &before);
    desk.words(&["commit", "build"]).success();
    desk.sh(&desk.host, check).success().expect_out(&checked.out());
    desk.nothing_is_kept();
}

#[test]
fn autotools_configure_make_check_and_install() {
    let script = "autoreconf -fi > log 2>&1; ./configure --prefix=$PWD/there >> log; make -s -j2 >> log; \
                  make -s check >> log; make -s install >> log; grep -c yes log; make -s distclean >> log";
    builds(
        "autotools",
        &["autoreconf", "automake", "make", "cc"],
        &[SOURCES, AUTOTOOLS],
        script,
        "there/bin/tiny; ls -l there/bin | cut -c1-10",
    );
}

#[test]
fn cmake_build_test_and_install() {
    let script = "cmake -S . -B out > log; cmake --build out -j2 >> log; (cd out && ctest -Q); \
                  cmake --install out --prefix $PWD/there >> log; ls out | sort";
    builds(
        "cmake",
        &["cmake", "make", "cc"],
        &[SOURCES, CMAKE],
        script,
        "there/bin/tiny; ls there/bin",
    );
}

#[test]
fn a_debian_package_has_roots_files() {
    let needs = ["dpkg-buildpackage", "dh", "fakeroot", "autoreconf", "automake", "cc"];
    let script = "cd tiny-1.0; HOME=$PWD/../home dpkg-buildpackage -us -uc -b > ../log 2>&1; cd ..; \
                  dpkg-deb -c tiny_1.0_*.deb | awk '{ print $1, $2, $6 }'";
    let check = "dpkg-deb -c tiny_1.0_*.deb | grep -c root/root";
    builds("debian", &needs, &[SOURCES, AUTOTOOLS, DEBIAN], script, check);
}

#[test]
fn cargo_with_a_build_script_and_a_macro() {
    let script = "CARGO_TARGET_DIR=$PWD/out cargo build -q --offline; out/debug/tiny";
    builds("cargo", &["cargo", "cc"], &[CARGO], script, "out/debug/tiny");
}

#[test]
fn npm_ci_with_an_install_script() {
    let script =
        "export HOME=$PWD/home; npm ci --offline --silent; ls -a node_modules node_modules/dep";
    builds("npm", &["npm", "node"], &[NPM], script, "node -e 'console.log(require(\"dep\"))'");
}

#[test]
fn pip_install_of_a_source_package() {
    let mut modules = std::process::Command::new("python3");
    modules.args(["-c", "import setuptools, wheel, pip"]).stderr(std::process::Stdio::null());
    if !modules.status().is_ok_and(|status| status.success()) {
        return skip("python3 with setuptools, wheel and pip");
    }
    let script = "export HOME=$PWD/home; \
                  python3 -m pip install -q --no-build-isolation --no-index --target there . ; \
                  cd home; PYTHONPATH=../there python3 -c 'import tiny.c; print(tiny.c.__name__)'";
    let check = "cd home; PYTHONPATH=../there python3 -c 'import tiny.c; print(tiny.X)'";
    builds("pip", &["python3", "cc"], &[PYTHON], script, check);
}

#[test]
fn go_build_with_an_empty_cache() {
    let script = "HOME=$PWD/home GOPROXY=off GOFLAGS=-mod=mod go build -o tiny . ; ./tiny";
    builds("go", &["go"], &[GO], script, "./tiny");
}

#[test]
fn git_clean_removes_what_is_not_tracked() {
    builds(
        "git-clean",
        &["git"],
        &[GIT],
        "git clean -fdx; git status --short; ls",
        "git status --short; ls",
    );
}
