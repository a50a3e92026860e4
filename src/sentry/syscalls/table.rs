//! The table: one row per syscall of x86_64, and how a row is found.
//!
//! The rows are data, and one sequence in the order of the numbers is what a reader looks a call up
//! in: they stand in one file, `table/rows.rs`, which is longer than a file of code should be.

mod rows;
#[cfg(test)]
mod tests;

use super::row::Row;

pub use rows::ROWS;

/// The row of a syscall's number; `None` for a number that Linux 6.18 does not know.
pub fn row(number: u32) -> Option<&'static Row> {
    let position = *INDEX.get(usize::try_from(number).ok()?)?;
    ROWS.get(usize::from(position))
}

/// The row of a syscall's name, with or without `SYS_`.
pub fn by_name(name: &str) -> Option<&'static Row> {
    let name = name.strip_prefix("SYS_").unwrap_or(name);
    ROWS.iter().find(|row| row.name == name)
}

const NO_ROW: u16 = u16::MAX;
const NUMBERS: usize = ROWS[ROWS.len() - 1].number as usize + 1;

/// The position in `ROWS` of each number's row.
static INDEX: [u16; NUMBERS] = index();

/// Two rows of one number do not compile, nor does a row behind one of a higher number.
const fn index() -> [u16; NUMBERS] {
    let mut index = [NO_ROW; NUMBERS];
    let mut position = 0;
    while position < ROWS.len() {
        let number = ROWS[position].number;
        assert!(position == 0 || ROWS[position - 1].number < number, "rows are out of order");
        index[number as usize] = position as u16;
        position += 1;
    }
    index
}
