//! The one mask that decides which rows of the syscall table trap.

bitflags::bitflags! {
    /// What a run asked for. A row traps when it names a feature that is on.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Features: u32 {
        /// On in every run.
        const ALWAYS = 1;
        /// Somebody reads exec events: `-v`, or an event stream.
        const EXEC_EVENTS = 1 << 1;
        /// Something looks at the CPU clocks of the guests: new processes have to be noticed.
        const CPU_CLOCK = 1 << 8;
        /// The guest has a set of processors that it cannot leave: `--cpus`.
        const CPU_SET = 1 << 9;
        /// The guest is shown a machine of its own size: `--cpus`, `--memory`.
        const MACHINE_VIEW = 1 << 10;
        /// The sandbox's log can be read at /dev/kmsg: `--kmsg`.
        const KMSG = 1 << 11;
        /// The guests come from an image: their CPU times began before.
        const RESTORED = 1 << 12;
        /// Memory of the guests may still be mapped from their image: `restore --lazy`.
        const LAZY = 1 << 13;
        /// What files the guests touch is recorded: `--record-files`, `sandbox learn`.
        const FILE_LOG = 1 << 14;
        /// Nothing waits for the disk in overlays: `--fake-fsync`.
        const FAKE_SYNC = 1 << 15;
        /// The time of day is the sandbox's own (`--time`).
        const VIRTUAL_TIME = 1 << 16;
        /// All clocks run at a rate of their own (`--time rate=N`). Never without VIRTUAL_TIME.
        const VIRTUAL_RATE = 1 << 17;
        /// As FAKE_SYNC, where nothing of the host can be changed: sync(2) has nothing to do. Never without FAKE_SYNC.
        const FAKE_SYNC_ALL = 1 << 18;
        /// Ids of the host's are missing inside, so that the kernel takes some for invalid: an ordinary user's run.
        const FOREIGN_IDS = 1 << 19;
        /// What the run needs is found out: `sandbox learn`. Never without FILE_LOG and CPU_CLOCK.
        const LEARN = 1 << 20;
        /// The run is to do the same whenever it is done: `--deterministic`. Never without VIRTUAL_TIME.
        const DETERMINISTIC = 1 << 21;
        /// The guests are root and believe in ids and owners that the kernel does not have: `--root`.
        const ROOT = 1 << 22;
        /// Other ids inside are the user's subordinate ones, and the kernel's business: `--root=sub-ids`. Never with ROOT.
        const SUB_IDS = 1 << 23;
        /// Rules are about names that may come to be: a pattern of `--hide`, `--deny`, `--ro`.
        const PATTERNS = 1 << 24;
        /// Files of overlays get their content when they are first opened: `--overlay` without overlayfs.
        const TWINS = 1 << 25;
        /// Some hosts may be reached: `--net allow`.
        const NETWORK = 1 << 26;
        /// Files that no rule names are asked about: `--ask files`.
        const ASK_FILES = 1 << 27;
        /// The guests have no network, and no network namespace for it: `--walls landlock`. Never without NO_NAMESPACES.
        const NO_LOOPBACK = 1 << 29;
        /// The guests live in the host's namespaces: `--walls landlock`.
        const NO_NAMESPACES = 1 << 30;
    }
}

impl Features {
    /// What is found anew, or is not there, where a run is restored.
    pub const OF_THIS_RUN: Features = Features::RESTORED
        .union(Features::LAZY)
        .union(Features::PATTERNS)
        .union(Features::TWINS)
        .union(Features::ASK_FILES);
}

impl Default for Features {
    fn default() -> Self {
        Features::ALWAYS
    }
}
