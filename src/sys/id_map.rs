//! Users and groups of a user namespace (user_namespaces(7)).

use std::io;

use super::generated;

/// One of its maps: (inside, outside, count). "Outside" is as the reader's own namespace numbers it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct IdMap(Vec<(u32, u32, u32)>);

impl IdMap {
    /// None has a number inside.
    pub const NONE: IdMap = IdMap(Vec::new());

    /// The users of the namespace that `pid` is in; everybody may read that.
    pub fn of_users(pid: i32) -> io::Result<IdMap> {
        IdMap::read(format!("/proc/{pid}/uid_map"))
    }

    /// Likewise the groups.
    pub fn of_groups(pid: i32) -> io::Result<IdMap> {
        IdMap::read(format!("/proc/{pid}/gid_map"))
    }

    fn read(path: String) -> io::Result<IdMap> {
        generated::text(path).map(|text| IdMap::parse(&text))
    }

    /// Reads the lines of a map; what is none is left out.
    pub fn parse(text: &str) -> IdMap {
        let range = |line: &str| {
            let mut words = line.split_whitespace().map(|word| word.parse().ok());
            Some((words.next()??, words.next()??, words.next()??))
        };
        IdMap(text.lines().filter_map(range).collect())
    }

    /// What is called `outside` inside.
    pub fn inside(&self, outside: u32) -> Option<u32> {
        self.0.iter().find_map(|(inside, first, count)| {
            let distance = outside.checked_sub(*first).filter(|distance| distance < count)?;
            inside.checked_add(distance)
        })
    }

    /// Whether there is one of this number inside.
    pub fn has(&self, id: u32) -> bool {
        let is_in = |(inside, _, count): &(u32, u32, u32)| {
            id.checked_sub(*inside).is_some_and(|distance| distance < *count)
        };
        self.0.iter().any(is_in)
    }
}

/// Of which kind an id in an access control list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// A user.
    User,
    /// A group.
    Group,
}

/// Gives each entry of an access control list the id that `map` has for its own
/// (include/uapi/linux/posix_acl_xattr.h: a version, then tag, permissions and id of each entry).
pub fn translate_list(list: &mut [u8], map: impl Fn(Whose, u32) -> u32) {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    for entry in list.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
        let (head, id) = entry.split_at_mut(4);
        let Ok(number) = (&*id).try_into().map(u32::from_le_bytes) else { continue };
        let whose = match u16::from_le_bytes([head[0], head[1]]) {
            USER => Whose::User,
            GROUP => Whose::Group,
            _ => continue,
        };
        id.copy_from_slice(&map(whose, number).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_translated_by_the_range_that_it_is_in() {
        let map = IdMap::parse("         0       1000          1\n 10 5000 20\nnonsense\n");
        assert_eq!([map.inside(1000), map.inside(5019)], [Some(0), Some(29)]);
        assert_eq!([map.inside(999), map.inside(5020), map.inside(0)], [None; 3]);
        let all = IdMap::parse("0 0 4294967295");
        assert_eq!(all.inside(4_294_967_294), Some(4_294_967_294));
        let map = IdMap::parse("0 1000 1\n         1     100000      65536\n");
        assert_eq!(map.inside(1000), Some(0));
        assert_eq!(map.inside(100_009), Some(10));
        assert_eq!(map.inside(999), None);
        assert!(map.has(0) && map.has(65_536) && !map.has(65_537));
        assert_eq!(IdMap::NONE.inside(0), None);
    }
}
