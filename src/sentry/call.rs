//! What a handler is given: the trapped call, and the kernel.

use std::sync::Arc;

use super::kernel::Kernel;
use super::syscalls::Row;
use crate::notify::{GuestMemory, Received, Trapped};

/// A trapped call for a handler that answers at once.
#[derive(Debug, Clone, Copy)]
pub struct Call<'c> {
    /// The kernel that serves it.
    pub kernel: &'c Arc<Kernel>,
    /// The row it was dispatched by.
    pub row: &'static Row,
    trapped: &'c Trapped,
}

/// A trapped call for a handler that may wait: owns what it needs.
#[derive(Debug, Clone)]
pub struct TaskCall {
    /// The kernel that serves it.
    pub kernel: Arc<Kernel>,
    /// The row it was dispatched by.
    pub row: &'static Row,
    trapped: Trapped,
}

impl<'c> Call<'c> {
    /// A call of `row`.
    pub fn new(kernel: &'c Arc<Kernel>, row: &'static Row, trapped: &'c Trapped) -> Self {
        Call { kernel, row, trapped }
    }

    /// The same call for a handler that may wait.
    pub fn to_owned(self) -> TaskCall {
        TaskCall { kernel: Arc::clone(self.kernel), row: self.row, trapped: self.trapped.clone() }
    }

    /// The registers and the thread.
    pub fn received(&self) -> &'c Received {
        self.trapped.received()
    }

    /// The memory of the thread.
    pub fn memory(&self) -> GuestMemory<'c> {
        GuestMemory::of(self.trapped)
    }

    /// The call itself, for what outlives this value.
    pub fn trapped(&self) -> &'c Trapped {
        self.trapped
    }
}

impl TaskCall {
    /// The same call for what answers at once.
    pub fn as_call(&self) -> Call<'_> {
        Call { kernel: &self.kernel, row: self.row, trapped: &self.trapped }
    }

    /// The registers and the thread.
    pub fn received(&self) -> &Received {
        self.trapped.received()
    }

    /// The memory of the thread.
    pub fn memory(&self) -> GuestMemory<'_> {
        GuestMemory::of(&self.trapped)
    }

    /// The call itself.
    pub fn trapped(&self) -> &Trapped {
        &self.trapped
    }
}
