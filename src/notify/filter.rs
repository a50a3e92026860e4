//! From rules to a BPF program.
//!
//! Owns what a rule is and how libseccomp turns rules into a program. It does not know which
//! syscalls there are or what they mean, and it loads nothing.

use std::io::{Read, Seek, SeekFrom};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext};
use nix::errno::Errno;
use nix::unistd::{getgid, getuid};

use crate::sys::memfd::anonymous_file;
use crate::sys::seccomp::{RET_USER_NOTIF, sock_filter};

/// What the filter does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The kernel runs it.
    Allow,
    /// The filter answers with this error.
    Errno(Errno),
    /// It becomes a notification.
    Notify,
}

/// A test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// The argument equals this.
    Is(u64),
    /// The argument equals one of these.
    In(&'static [u64]),
    /// Any bit of this mask is set in the argument.
    Has(u64),
    /// The argument is not this id of the caller's. (With something in the upper half of the register the filter
    /// takes it for another one.)
    IsNot(Own),
}

/// An id of whoever makes the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// getuid(2).
    User,
    /// getgid(2).
    Group,
    /// A number that the caller uses where nobody else does.
    Number(u64),
}

impl Own {
    /// The id itself.
    pub fn id(self) -> u64 {
        match self {
            Own::User => getuid().as_raw().into(),
            Own::Group => getgid().as_raw().into(),
            Own::Number(number) => number,
        }
    }
}

impl Test {
    /// Whether `value` passes.
    pub fn holds(self, value: u64) -> bool {
        match self {
            Test::Is(expected) => value == expected,
            Test::In(expected) => expected.contains(&value),
            Test::Has(mask) => value & mask != 0,
            Test::IsNot(own) => value != own.id(),
        }
    }
}

/// What the filter does with one syscall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The syscall's number.
    pub number: u32,
    /// What happens where no exception applies.
    pub action: Action,
    /// Conditions that must all hold, and what happens then.
    pub exceptions: Vec<(Vec<Condition>, Action)>,
}

/// What an exception asks of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// The argument's index.
    pub arg: u8,
    /// How many bits of it the kernel looks at: 32 or 64.
    pub bits: u8,
    /// What is asked.
    pub test: Test,
}

/// Why a program could not be made.
#[derive(Debug)]
pub struct FilterError(String);

impl std::fmt::Display for FilterError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot generate the seccomp filter: {}", self.0)
    }
}

impl std::error::Error for FilterError {}

impl From<SeccompError> for FilterError {
    fn from(error: SeccompError) -> Self {
        FilterError(format!("libseccomp: {error}"))
    }
}

/// seccomp_api_set(3): the level that has user notification.
const API_WITH_NOTIFY: u32 = 5;

/// A program for `rules`; every number without a rule, a foreign architecture and the x32 entry
/// points become notifications (the sentry refuses them with an event).
///
/// libseccomp allows what no rule names. That keeps the rules of exceptions simple (one comparison
/// an argument) and makes an always-allowed number constant, which the kernel caches in a bitmap
/// (kernel/seccomp.c, seccomp_is_const_allow, Linux 5.11). The numbers without a rule are caught
/// by a prologue in front of libseccomp's program, since it has no test for ranges of numbers.
pub fn generate(rules: &[Rule]) -> Result<Vec<sock_filter>, FilterError> {
    // Otherwise libseccomp asks the kernel, and where seccomp(2) is refused it calls Notify a wrong
    // argument. What the kernel knows shows when the program is loaded.
    libseccomp::set_api(API_WITH_NOTIFY)?;
    let mut context = ScmpFilterContext::new(ScmpAction::Allow)?;
    context.set_act_badarch(ScmpAction::Notify)?;
    for rule in rules {
        add_rule(&mut context, rule)?;
    }
    let mut program = prologue(rules);
    program.extend(export(&context)?);
    Ok(program)
}

fn add_rule(context: &mut ScmpFilterContext, rule: &Rule) -> Result<(), FilterError> {
    let number = rule.number as i32;
    if rule.action != Action::Allow {
        // An unconditional rule hides conditional ones in libseccomp, so exceptions of a row that
        // is not native would be lost silently.
        if rule.exceptions.iter().any(|(_, action)| *action != rule.action) {
            return Err(FilterError(format!(
                "rule {number} has exceptions although it is not native"
            )));
        }
        context.add_rule_exact(scmp(rule.action), number)?;
        return Ok(());
    }
    // A number whose arguments are tested is looked up first: it is one that programs may call often,
    // while the speed of a call that is answered or trapped does not depend on the filter. (That the
    // kernel runs a program at all costs 17 ns; 30 instructions more or less could not be measured.)
    if !rule.exceptions.is_empty() {
        context.set_syscall_priority(number, u8::MAX)?;
    }
    for (conditions, action) in &rule.exceptions {
        if *action == Action::Allow {
            continue;
        }
        for comparisons in alternatives(conditions) {
            context.add_rule_conditional_exact(scmp(*action), number, &comparisons)?;
        }
    }
    Ok(())
}

/// Every way in which all conditions hold, each as one comparison an argument.
fn alternatives(conditions: &[Condition]) -> Vec<Vec<ScmpArgCompare>> {
    conditions.iter().fold(vec![Vec::new()], |ways, condition| {
        let compares: Vec<_> = comparisons(condition.test, condition.bits)
            .into_iter()
            .map(|(operator, datum)| ScmpArgCompare::new(u32::from(condition.arg), operator, datum))
            .collect();
        ways.iter()
            .flat_map(|way| compares.iter().map(|compare| [way.as_slice(), &[*compare]].concat()))
            .collect()
    })
}

/// How an argument is compared, and with what: "any bit of" becomes one comparison a bit.
fn comparisons(test: Test, bits: u8) -> Vec<(ScmpCompareOp, u64)> {
    let width = if bits == 32 { u64::from(u32::MAX) } else { u64::MAX };
    let is = |mask, value| (ScmpCompareOp::MaskedEqual(mask), value & width);
    match test {
        Test::Is(value) => vec![is(width, value)],
        Test::In(values) => values.iter().map(|value| is(width, *value)).collect(),
        Test::Has(mask) => (0..64)
            .map(|bit| 1u64 << bit)
            .filter(|bit| mask & width & bit != 0)
            .map(|bit| is(bit, bit))
            .collect(),
        Test::IsNot(own) => vec![(ScmpCompareOp::NotEqual, own.id())],
    }
}

fn scmp(action: Action) -> ScmpAction {
    match action {
        Action::Allow => ScmpAction::Allow,
        Action::Errno(errno) => ScmpAction::Errno(errno as i32),
        Action::Notify => ScmpAction::Notify,
    }
}

/// Sends every native number without a rule to the listener; leaves foreign architectures and x32
/// numbers to libseccomp's own tests behind it.
fn prologue(rules: &[Rule]) -> Vec<sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const X32_BIT: u32 = 0x4000_0000;
    const NR: u32 = 0;
    const ARCH: u32 = 4;

    let gaps = gaps(rules);
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let body = 2 + 3 * gaps.len();
    let mut program = vec![
        op(LOAD, 0, 0, ARCH),
        op(EQUAL, 0, u8::try_from(body).unwrap_or(u8::MAX), native_arch()),
        op(LOAD, 0, 0, NR),
        op(AT_LEAST, u8::try_from(body - 2).unwrap_or(u8::MAX), 0, X32_BIT),
    ];
    for (first, last) in gaps {
        program.push(op(AT_LEAST, 0, 2, first));
        program.push(op(AT_LEAST, 1, 0, last.saturating_add(1)));
        program.push(op(RETURN, 0, 0, RET_USER_NOTIF));
    }
    program
}

/// The ranges of numbers without a rule, both ends included, up to the x32 numbers.
fn gaps(rules: &[Rule]) -> Vec<(u32, u32)> {
    const LAST: u32 = 0x3fff_ffff;
    let mut numbers: Vec<u32> = rules.iter().map(|rule| rule.number).collect();
    numbers.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = 0;
    for number in numbers {
        if number > next {
            gaps.push((next, number - 1));
        }
        next = number + 1;
    }
    gaps.push((next, LAST));
    gaps
}

/// AUDIT_ARCH_* of this program's own architecture.
pub const fn native_arch() -> u32 {
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    const AUDIT_ARCH_AARCH64: u32 = 0xc000_00b7;
    if cfg!(target_arch = "aarch64") { AUDIT_ARCH_AARCH64 } else { AUDIT_ARCH_X86_64 }
}

/// libseccomp before 2.6 exports to a descriptor only.
fn export(context: &ScmpFilterContext) -> Result<Vec<sock_filter>, FilterError> {
    let io = |what: &str, error: &dyn std::fmt::Display| FilterError(format!("{what}: {error}"));
    let mut file = anonymous_file(c"seccomp filter").map_err(|e| io("memfd_create", &e))?;
    context.export_bpf(&mut file)?;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(|e| io("seek", &e))?;
    file.read_to_end(&mut bytes).map_err(|e| io("read", &e))?;
    Ok(bytes
        .chunks_exact(8)
        .map(|op| sock_filter {
            code: u16::from_ne_bytes([op[0], op[1]]),
            jt: op[2],
            jf: op[3],
            k: u32::from_ne_bytes([op[4], op[5], op[6], op[7]]),
        })
        .collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs a classic BPF program of the kind that seccomp takes, as the kernel does.
    pub(crate) fn run(program: &[sock_filter], nr: u32, arch: u32, args: [u64; 6]) -> u32 {
        let word = |offset: u32| -> u32 {
            match offset {
                0 => nr,
                4 => arch,
                16.. => {
                    let at = (offset - 16) as usize;
                    (args[at / 8] >> (8 * (at % 8))) as u32
                }
                _ => 0,
            }
        };
        let (mut accumulator, mut pc) = (0u32, 0usize);
        loop {
            let op = &program[pc];
            pc += 1;
            let jump = |taken: bool| usize::from(if taken { op.jt } else { op.jf });
            match u32::from(op.code) {
                0x20 => accumulator = word(op.k),
                0x05 => pc += op.k as usize,
                0x15 => pc += jump(accumulator == op.k),
                0x25 => pc += jump(accumulator > op.k),
                0x35 => pc += jump(accumulator >= op.k),
                0x45 => pc += jump(accumulator & op.k != 0),
                0x54 => accumulator &= op.k,
                0x06 => return op.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    pub(crate) const ALLOW: u32 = 0x7fff_0000;
    pub(crate) const ERRNO: u32 = 0x0005_0000;

    fn rule(number: u32, action: Action) -> Rule {
        Rule { number, action, exceptions: Vec::new() }
    }

    fn when(arg: u8, test: Test) -> Condition {
        Condition { arg, bits: 32, test }
    }

    fn sample() -> Vec<sock_filter> {
        let tiocsti = 0x5412;
        generate(&[
            rule(0, Action::Allow),
            rule(1, Action::Errno(Errno::EPERM)),
            Rule {
                number: 2,
                action: Action::Allow,
                exceptions: vec![(vec![when(1, Test::Is(tiocsti))], Action::Errno(Errno::EPERM))],
            },
            Rule {
                number: 5,
                action: Action::Allow,
                exceptions: vec![(vec![when(0, Test::Has(0x30))], Action::Notify)],
            },
            Rule {
                number: 7,
                action: Action::Allow,
                exceptions: vec![(
                    vec![when(1, Test::Has(0x44)), when(2, Test::In(&[8, 9]))],
                    Action::Errno(Errno::EACCES),
                )],
            },
            rule(9, Action::Notify),
        ])
        .unwrap()
    }

    #[test]
    fn rules_and_exceptions_decide() {
        let program = sample();
        let native = native_arch();
        let run = |nr, args| run(&program, nr, native, args);
        assert_eq!(run(0, [0; 6]), ALLOW);
        assert_eq!(run(1, [0; 6]), ERRNO | Errno::EPERM as u32);
        assert_eq!(run(2, [0, 7, 0, 0, 0, 0]), ALLOW);
        assert_eq!(run(2, [0, 0x5412, 0, 0, 0, 0]), ERRNO | Errno::EPERM as u32);
        assert_eq!(run(5, [0x01, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(run(5, [0x10, 0, 0, 0, 0, 0]), RET_USER_NOTIF);
        assert_eq!(run(5, [0xff, 0, 0, 0, 0, 0]), RET_USER_NOTIF);
        assert_eq!(run(9, [0; 6]), RET_USER_NOTIF);
    }

    #[test]
    fn tests_of_several_arguments_must_all_hold() {
        let program = sample();
        let run = |flags, value| run(&program, 7, native_arch(), [0, flags, value, 0, 0, 0]);
        let denied = ERRNO | Errno::EACCES as u32;
        for (flags, value, expected) in [
            (0x04, 8, denied),
            (0x40, 9, denied),
            (0xff, 9, denied),
            (0x40, 10, ALLOW),
            (0x03, 9, ALLOW),
            (0, 0, ALLOW),
        ] {
            assert_eq!(run(flags, value), expected, "{flags:#x} {value}");
        }
    }

    #[test]
    fn upper_half_of_a_32_bit_argument_cannot_hide_a_value() {
        let program = sample();
        let args = [0, 0x1_0000_5412, 0, 0, 0, 0];
        assert_eq!(run(&program, 2, native_arch(), args), ERRNO | Errno::EPERM as u32);
    }

    #[test]
    fn numbers_without_a_rule_and_foreign_entry_points_notify() {
        let program = sample();
        // (All ones is what a tracer sets to skip a call; the kernel itself answers ENOSYS.)
        for number in [3, 4, 6, 8, 10, 11, 470, 0x3fff_ffff, 0x4000_0000, 0x4000_0027] {
            assert_eq!(run(&program, number, native_arch(), [0; 6]), RET_USER_NOTIF, "{number}");
        }
        const I386: u32 = 0x4000_0003;
        assert_eq!(run(&program, 0, I386, [0; 6]), RET_USER_NOTIF);
    }

    #[test]
    fn exceptions_of_a_row_that_is_not_native_are_an_error() {
        let bad = Rule {
            number: 7,
            action: Action::Errno(Errno::EPERM),
            exceptions: vec![(vec![when(0, Test::Is(1))], Action::Notify)],
        };
        assert!(generate(&[bad]).unwrap_err().to_string().contains("rule 7"));
    }

    /// What the rules say, read one after the other.
    fn expected(rules: &[Rule], number: u32, args: [u64; 6]) -> Action {
        let Some(rule) = rules.iter().find(|rule| rule.number == number) else {
            return Action::Notify;
        };
        let holds = |condition: &Condition| {
            let value = args[usize::from(condition.arg)];
            let mask = if condition.bits == 32 { u64::from(u32::MAX) } else { u64::MAX };
            condition.test.holds(value & mask)
        };
        let exception = rule.exceptions.iter().find(|(conditions, _)| conditions.iter().all(holds));
        exception.map_or(rule.action, |(_, action)| *action)
    }

    mod random {
        use proptest::prelude::*;
        use proptest::sample::{select, subsequence};

        use super::*;

        /// Values that come up in tests and in arguments, so that they often meet.
        const VALUES: [u64; 8] =
            [0, 1, 2, 0x30, 0x5412, 0x8000_0000, 0x1_0000_0001, 0xffff_ffff_ffff_ffff];

        fn action() -> impl Strategy<Value = Action> {
            let denied = [Action::Errno(Errno::EPERM), Action::Errno(Errno::ENOSYS)];
            select([&[Action::Allow, Action::Allow, Action::Notify], denied.as_slice()].concat())
        }

        /// A condition on `arg`, of values that the bits it looks at can have.
        fn condition(arg: u8) -> impl Strategy<Value = Condition> {
            let test = prop_oneof![
                select(VALUES.as_slice()).prop_map(|value| Test::Is(value & 0xffff_ffff)),
                select(&VALUES[1..]).prop_map(|value| Test::Has(value & 0xffff_ffff)),
                Just(Test::In(&[1, 0x30, 0x5412])),
            ];
            let wide = select(VALUES.as_slice()).prop_map(Test::Is);
            prop_oneof![
                test.prop_map(move |test| Condition { arg, bits: 32, test }),
                wide.prop_map(move |test| Condition { arg, bits: 64, test }),
            ]
        }

        /// All exceptions of a rule do the same, and only a native one has any.
        fn what_happens() -> impl Strategy<Value = (Action, Vec<(Vec<Condition>, Action)>)> {
            let conditions = subsequence(vec![0u8, 2, 5], 1..=2)
                .prop_flat_map(|args| args.into_iter().map(condition).collect::<Vec<_>>());
            let exceptions = proptest::collection::vec(conditions, 0..3);
            (action(), action(), exceptions).prop_map(|(action, other, exceptions)| {
                let exceptions = exceptions.into_iter().filter(|_| action == Action::Allow);
                (action, exceptions.map(|conditions| (conditions, other)).collect())
            })
        }

        fn rules() -> impl Strategy<Value = Vec<Rule>> {
            proptest::collection::btree_map(0u32..30, what_happens(), 0..20).prop_map(|rules| {
                let rule = |(number, (action, exceptions))| Rule { number, action, exceptions };
                rules.into_iter().map(rule).collect()
            })
        }

        fn call() -> impl Strategy<Value = (u32, [u64; 6])> {
            let number = prop_oneof![9 => 0u32..32, 1 => 0u32..0x3fff_ffff];
            let value = prop_oneof![9 => select(VALUES.as_slice()), 1 => any::<u64>()];
            (number, proptest::array::uniform6(value))
        }

        proptest! {
            #[test]
            fn program_does_what_the_rules_say(
                rules in rules(),
                calls in proptest::collection::vec(call(), 200),
            ) {
                let program = generate(&rules).unwrap();
                for (number, args) in calls {
                    let wanted = match expected(&rules, number, args) {
                        Action::Allow => ALLOW,
                        Action::Errno(errno) => ERRNO | errno as u32,
                        Action::Notify => RET_USER_NOTIF,
                    };
                    let got = run(&program, number, native_arch(), args);
                    prop_assert_eq!(got, wanted, "{} {:x?}", number, args);
                }
            }
        }
    }
}
