//! Memory that has been written to and holds zeros: what a process says of itself, and a copy of one.

use std::fs;

use crate::common::{LIMIT, have, run};
use crate::desk::Desk;

const PROGRAM: &str = r"
import mmap, os
PAGE, SIZE = 4096, 24 << 20
memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, SIZE, PAGE):
    memory[at] = 0
wanted = bytearray(SIZE)
for at in range(PAGE - 1, SIZE, 100 * PAGE):
    memory[at] = wanted[at] = 7
open('up', 'w').close()
while not os.path.exists('go'):
    pass
print('all so' if memory.read(SIZE) == wanted else 'not so')
";

/// The image comes by the standard input, behind something else that has been read: part of a file, which has its
/// content at other places than the image says.
#[test]
fn written_zeros_are_there_again_from_the_rest_of_a_file() {
    if !have("python3") {
        return;
    }
    for left in [true, false] {
        let desk = Desk::new(&format!("zeros-{left}"));
        desk.workspace.write("zeros.py", PROGRAM);
        desk.begin_command("exec python3 zeros.py");
        let words = ["save", "it", "-o", "image", "--leave-running"];
        desk.sandbox(&words[..if left { 5 } else { 4 }]).success();
        if left {
            desk.sandbox(&["kill", "it", "KILL"]).success();
        }
        desk.sandbox(&["wait", "it"]).expect_status(137);
        let image = fs::read(desk.workspace.path().join("image")).unwrap();
        // (The zeros are not in it.)
        assert!(image.len() < 16 << 20, "{}", image.len());
        let both = [vec![b'-'; 4096], image].concat();
        fs::write(desk.workspace.path().join("both"), both).unwrap();
        let script = "{ dd bs=4096 count=1 of=/dev/null status=none
            exec \"$0\" restore - --detach --id it; } < both";
        run(desk.beside(&["sh", "-c", script]), b"", LIMIT).success();
        desk.touch("go");
        desk.ends_well("all so\n");
        desk.is_clean();
    }
}
