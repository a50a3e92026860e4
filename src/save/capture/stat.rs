//! /proc/PID/stat (proc_pid_stat(5)).

use crate::sys::generated;

/// Its fields, numbered from 1 as in the man page.
#[derive(Debug, Clone)]
pub struct Fields(Vec<String>);

/// Reads the fields of a process or thread.
pub fn read(pid: i32) -> Option<Fields> {
    parse(&generated::single(format!("/proc/{pid}/stat")).ok()?)
}

/// Those of a thread: with what only it has used. (Of a thread's number alone the kernel adds up all threads of its
/// process, do_task_stat in fs/proc/array.c, which takes long where they are many.)
pub fn read_thread(pid: i32, tid: i32) -> Option<Fields> {
    parse(&generated::single(format!("/proc/{pid}/task/{tid}/stat")).ok()?)
}

/// The name, in parentheses, may hold anything.
fn parse(text: &[u8]) -> Option<Fields> {
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(close + 2..)?).ok()?;
    let mut fields = vec![String::new(); 2];
    fields.extend(rest.split_whitespace().map(str::to_owned));
    Some(Fields(fields))
}

impl Fields {
    /// A field by its number; 0 where there is none.
    pub fn field(&self, number: usize) -> u64 {
        self.signed(number) as u64
    }

    /// The same, signed.
    pub fn signed(&self, number: usize) -> i64 {
        let text = self.0.get(number - 1).map_or("0", String::as_str);
        text.parse().unwrap_or_else(|_| text.parse::<u64>().unwrap_or(0) as i64)
    }

    /// The state, one letter.
    pub fn state(&self) -> u8 {
        self.0.get(2).and_then(|state| state.bytes().next()).unwrap_or(b'?')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let fields = parse(b"7 (a) b) c) S 1 2 3 18446744073709551615 -5").unwrap();
        assert_eq!(fields.state(), b'S');
        assert_eq!((fields.field(4), fields.field(6)), (1, 3));
        assert_eq!((fields.field(7), fields.signed(8)), (u64::MAX, -5));
        assert_eq!(fields.field(50), 0);
    }
}
