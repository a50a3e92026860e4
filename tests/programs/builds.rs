//! Compilers and build systems.

use std::fmt::Write as _;

use crate::common::{Workspace, have, skip};

/// Files of the C project that is made up on the spot.
const FILES: usize = 60;

#[test]
fn make_of_sixty_c_files() {
    if !have("make") || !have("cc") {
        return;
    }
    let workspace = Workspace::new("make");
    write_project(&workspace);
    // Two jobs: the order of the lines is any, their set is not.
    let script = "make -s -j2 2>&1 | sort && ./program && make -q && touch part7.c && \
                  make -n | grep -c ' part' && make -s clean && ls";
    workspace.same(&["sh", "-c", script]).out_has(&format!("sum {}\n", FILES * (FILES + 1) / 2));
}

fn write_project(workspace: &Workspace) {
    let mut header = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    let mut main = String::from("#include \"project.h\"\nint main(void)\n{\n    int sum = 0;\n");
    for number in 1..=FILES {
        writeln!(header, "int part{number}(int x);").unwrap();
        writeln!(main, "    sum += part{number}(0);").unwrap();
        let source = format!(
            "#include \"project.h\"\nstatic int table[64];\nint part{number}(int x)\n{{\n    \
             for (int i = 0; i < 64; i++)\n        table[i] = i * x;\n    \
             return table[63] + {number};\n}}\n"
        );
        workspace.write(&format!("part{number}.c"), source);
    }
    main += "    printf(\"sum %d\\n\", sum);\n    return 0;\n}\n";
    workspace.write("project.h", header);
    workspace.write("main.c", main);
    workspace.write(
        "Makefile",
        "SOURCES := $(wildcard *.c)\nOBJECTS := $(SOURCES:.c=.o)\nCFLAGS := -O1 -MMD\n\
         program: $(OBJECTS)\n\t$(CC) -o $@ $^\n\t@echo linked $$(ls *.o | wc -l)\n\
         -include $(OBJECTS:.o=.d)\nclean:\n\t$(RM) program *.o *.d\n",
    );
}

/// Where scripts/setup --for-tests unpacks Debian's source of zlib.
const ZLIB: &str = "/var/cache/sandbox-tests/zlib";

#[test]
fn make_and_check_of_zlib() {
    if !have("make") || !have("cc") {
        return;
    }
    if !std::path::Path::new(ZLIB).join("configure").is_file() {
        return skip("zlib source");
    }
    let workspace = Workspace::new("zlib");
    workspace.native(&["cp", "-r", ZLIB, "zlib"]).success();
    let script = "cd zlib && ./configure >configured && make -s -j2 >made 2>&1 && \
                  make -s check && ls libz.a minigzip && ./minigzip <configure | md5sum";
    let outcome = workspace.same(&["sh", "-c", script]);
    outcome.out_has("zlib test OK").out_has("zlib shared test OK");
}

#[test]
fn cargo_of_a_vendored_crate() {
    if !have("cargo") || !have("cc") {
        return;
    }
    let workspace = Workspace::new("cargo");
    workspace.write(
        "Cargo.toml",
        "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\nbuild = \"build.rs\"\n\
         [dependencies]\nhelper = { path = \"vendor/helper\" }\n[workspace]\n",
    );
    workspace.write(
        "vendor/helper/Cargo.toml",
        "[package]\nname = \"helper\"\nversion = \"1.2.3\"\nedition = \"2021\"\n",
    );
    workspace.write(
        "vendor/helper/src/lib.rs",
        "pub fn double(x: u32) -> u32 {\n    2 * x\n}\n\n#[test]\nfn doubles() {\n    \
         assert_eq!(double(4), 8);\n}\n",
    );
    workspace.write(
        "build.rs",
        "fn main() {\n    let out = std::env::var(\"OUT_DIR\").unwrap();\n    \
         std::fs::write(format!(\"{out}/made.rs\"), \"const MADE: u32 = 21;\").unwrap();\n    \
         println!(\"cargo:rerun-if-changed=build.rs\");\n}\n",
    );
    workspace.write(
        "src/main.rs",
        "include!(concat!(env!(\"OUT_DIR\"), \"/made.rs\"));\nfn main() {\n    \
         let threads: Vec<_> = (0..8).map(|n| std::thread::spawn(move || helper::double(n))).collect();\n    \
         let sum: u32 = threads.into_iter().map(|t| t.join().unwrap()).sum();\n    \
         println!(\"answer {} {sum}\", helper::double(MADE));\n}\n",
    );
    let script = format!(
        "export CARGO_HOME={0}/cargo-home CARGO_TARGET_DIR={0}/target CARGO_INCREMENTAL=1
         unset RUSTFLAGS
         cargo build --offline --quiet -j2 && ./target/debug/app &&
         cargo test --offline --quiet -p helper 2>&1 | grep -o '1 passed; 0 failed' | head -n1 &&
         cargo run --offline --quiet",
        workspace.path().display()
    );
    workspace
        .same(&["sh", "-c", &script])
        .expect_out("answer 42 56\n1 passed; 0 failed\nanswer 42 56\n");
}
