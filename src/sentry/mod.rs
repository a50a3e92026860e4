//! The kernel state of a sandbox and the handlers of trapped syscalls.
//!
//! Owns what a kernel keeps: tasks and thread groups, the log, events, refusals, counters,
//! identifiers. It knows nothing of the command line or of how guests are launched: those come from
//! above, as arguments of [`Kernel::new`].

mod accounting;
mod block;
mod budget;
pub mod call;
pub mod beliefs;
mod carried;
mod census;
pub mod credentials;
mod dispatch;
mod events;
mod features;
pub mod file_log;
mod filter_log;
mod ids;
mod kernel;
mod kin;
mod kmsg;
mod lazy;
mod listings;
mod log;
mod machine;
mod measure;
mod memory;
pub mod net;
mod overlays;
pub mod paths;
mod pause;
mod pids;
mod random_device;
mod randomness;
mod refusals;
mod remade;
mod remake;
mod repeatable;
mod rewind;
mod sessions;
mod signals;
mod starts;
mod stat;
mod stats;
mod sweep;
pub mod syscalls;
mod task;
mod task_set;
mod time;
mod tracer;
mod vdso;

pub use accounting::{Limits, MemoryLimit};
pub use block::Interrupted;
pub use carried::{Brought, Carried, Used};
pub use census::ProcessInfo;
pub use events::{Event, Events, Record};
pub use features::Features;
pub use filter_log::{FilterLog, count as filter_count};
pub use ids::{Cookies, UniqueIds};
pub use kernel::{FIRST_CONTAINER, Kernel, KernelArgs, KernelError};
pub use lazy::{Lazy, MappedImage, Unsettled};
pub use listings::SavedListing;
pub use log::{KernelLog, Level};
pub use measure::Measured;
pub use pids::PidsLimit;
pub use random_device::{SavedDevice, StandingDevices};
pub use randomness::{Begin, Randomness, SavedOrigin, SavedRandomness, SavedStream};
pub use refusals::{Refusal, Refusals};
pub use remade::InterruptedWait;
pub use repeatable::SavedRepeat;
pub use starts::Starting;
pub use stats::{LimitState, Stats};
pub use task::{RecordedFilter, Task, ThreadGroup};
pub use task_set::TaskSet;
pub use time::Time;
pub use tracer::{Handler, Next, Tracees, Tracer};
