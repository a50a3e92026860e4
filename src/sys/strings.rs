//! Lists of C strings in one piece of memory, as execve(2) wants them: made by a process that may
//! allocate, used by one that may not.
//!
//! The words of the memory: how many lists there are; for each, the word at which it begins; the lists,
//! each one pointers and a null; the text. Until [`StringLists`] takes the memory over, a pointer is the
//! distance in bytes from the beginning.

use std::ffi::{CStr, CString, c_char};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nix::errno::Errno;

/// Some lists, ready to be used. Their memory neither moves nor changes.
#[derive(Debug)]
pub struct StringLists {
    memory: Memory,
}

/// Words in which every list and string has been found to lie wholly inside.
#[derive(Debug)]
enum Memory {
    Owned(Vec<u64>),
    /// Never unmapped: a child side ends or executes.
    Mapped(NonNull<u64>, usize),
}

/// One list: its strings, and the null-terminated array that execve(2) takes.
#[derive(Debug, Clone, Copy)]
pub struct StringList<'l> {
    pointers: *const *const c_char,
    lists: PhantomData<&'l StringLists>,
}

/// The words of `lists`. All of them begin in the first 2^32 words.
pub fn encode(lists: &[Vec<CString>]) -> Vec<u64> {
    let directory = 1 + lists.len();
    let pointers: usize = lists.iter().map(|list| list.len() + 1).sum();
    let mut words = vec![lists.len() as u64];
    let mut text = Vec::new();
    let mut begin = directory;
    for list in lists {
        words.push(begin as u64);
        begin += list.len() + 1;
    }
    let base = (directory + pointers) * 8;
    for list in lists {
        for string in list {
            words.push((base + text.len()) as u64);
            text.extend_from_slice(string.as_bytes_with_nul());
        }
        words.push(0);
    }
    // The last byte is a NUL whatever the strings are: nothing that is read as one runs over the end.
    text.resize((text.len() / 8 + 1) * 8, 0);
    words.extend(text.chunks_exact(8).map(|bytes| {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        u64::from_ne_bytes(word)
    }));
    words
}

impl StringLists {
    /// Lists of the caller's own.
    pub fn new(lists: &[Vec<CString>]) -> StringLists {
        let mut words = encode(lists);
        // What `encode` makes is sound.
        let _ = relocate(&mut words);
        StringLists { memory: Memory::Owned(words) }
    }

    /// Takes over lists that another process has written to a file of `words` words. EBADMSG: they are
    /// not sound. Child side.
    pub fn map(file: BorrowedFd<'_>, words: usize) -> Result<StringLists, Errno> {
        // SAFETY: a fresh private mapping touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * 8,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let address = NonNull::new(address.cast::<u64>()).ok_or(Errno::ENOMEM)?;
        // SAFETY: the mapping is page-aligned, `words` long, ours alone, and any bits are an u64. The
        // file is sealed against shrinking by its writer, so that every page of it is there.
        relocate(unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), words) })?;
        Ok(StringLists { memory: Memory::Mapped(address, words) })
    }

    /// How many lists there are. Child side.
    pub fn count(&self) -> usize {
        self.words()[0] as usize
    }

    /// List number `index`; EBADMSG where there are not so many. Child side.
    pub fn list(&self, index: usize) -> Result<StringList<'_>, Errno> {
        let words = self.words();
        if index >= self.count() {
            return Err(Errno::EBADMSG);
        }
        let pointers = words[words[1 + index] as usize..].as_ptr().cast();
        Ok(StringList { pointers, lists: PhantomData })
    }

    fn words(&self) -> &[u64] {
        match &self.memory {
            Memory::Owned(words) => words,
            // SAFETY: the mapping is so long, stays, and is not written any more.
            Memory::Mapped(address, words) => unsafe {
                std::slice::from_raw_parts(address.as_ptr(), *words)
            },
        }
    }
}

impl<'l> StringList<'l> {
    /// String number `index`, if there are so many. Child side.
    pub fn get(self, index: usize) -> Option<&'l CStr> {
        for at in 0..=index {
            // SAFETY: the array ends with a null, and no step goes beyond it.
            let string = unsafe { *self.pointers.add(at) };
            if string.is_null() {
                return None;
            }
            if at == index {
                // SAFETY: `relocate` has found it to lie before a NUL inside the memory.
                return Some(unsafe { CStr::from_ptr(string) });
            }
        }
        None
    }

    /// For execve(2).
    pub(super) fn as_ptr(self) -> *const *const c_char {
        self.pointers
    }
}

/// Turns distances into pointers, having checked that everything lies inside. Child side.
fn relocate(words: &mut [u64]) -> Result<(), Errno> {
    let (length, base) = (words.len(), words.as_ptr() as u64);
    let count = *words.first().ok_or(Errno::EBADMSG)? as usize;
    if count >= length || words[length - 1].to_ne_bytes()[7] != 0 {
        return Err(Errno::EBADMSG);
    }
    // Lists follow one another, so that none is relocated twice.
    let mut next = 1 + count;
    for list in 0..count {
        if words[1 + list] != next as u64 {
            return Err(Errno::EBADMSG);
        }
        loop {
            let distance = *words.get(next).ok_or(Errno::EBADMSG)?;
            next += 1;
            if distance == 0 {
                break;
            }
            if distance >= (length * 8) as u64 {
                return Err(Errno::EBADMSG);
            }
            words[next - 1] = base + distance;
        }
    }
    // A string may begin only behind the last list: what lies before is pointers, and changes.
    let text = base + (next * 8) as u64;
    let sound = words[1 + count..next].iter().all(|word| *word == 0 || *word >= text);
    if sound { Ok(()) } else { Err(Errno::EBADMSG) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::memfd::anonymous_file;

    fn strings(words: &[&str]) -> Vec<CString> {
        words.iter().map(|word| CString::new(*word).unwrap()).collect()
    }

    fn mapped(words: &[u64]) -> Result<StringLists, Errno> {
        let mut file = anonymous_file(c"test").unwrap();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        file.write_all(&bytes).unwrap();
        StringLists::map(file.as_fd(), words.len())
    }

    fn all(list: StringList<'_>) -> Vec<String> {
        (0..).map_while(|index| list.get(index)).map(|s| s.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn lists_arrive_as_they_were_made() {
        let lists = [strings(&["/dir"]), strings(&["a", "", "long enough for two words"]), vec![]];
        for taken in [StringLists::new(&lists), mapped(&encode(&lists)).unwrap()] {
            assert_eq!(taken.count(), 3);
            assert_eq!(all(taken.list(0).unwrap()), ["/dir"]);
            assert_eq!(all(taken.list(1).unwrap()), ["a", "", "long enough for two words"]);
            assert!(all(taken.list(2).unwrap()).is_empty());
            assert_eq!(taken.list(3).unwrap_err(), Errno::EBADMSG);
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_words_arrive_are_lists_or_an_error(
            mut words in proptest::collection::vec(0u64..400, 1..40),
            count in 0u64..4,
        ) {
            words[0] = count;
            if let Ok(lists) = mapped(&words) {
                (0..lists.count()).for_each(|index| {
                    let list = lists.list(index).unwrap();
                    (0..).map_while(|at| list.get(at)).for_each(drop);
                });
            }
        }

        #[test]
        fn any_strings_survive(lists in proptest::collection::vec(
            proptest::collection::vec("[a-z ]{0,20}", 0..6), 0..6))
        {
            let c = |list: &Vec<String>| list.iter().map(|s| CString::new(s.as_str()).unwrap()).collect();
            let taken = mapped(&encode(&lists.iter().map(c).collect::<Vec<_>>())).unwrap();
            for (index, list) in lists.iter().enumerate() {
                assert_eq!(&all(taken.list(index).unwrap()), list);
            }
        }
    }
}
