//! `sandbox wait`: until a sandbox has ended, and then its status.

use super::{OWN_ERROR, fail};
use crate::control::client::Sandbox;
use crate::control::protocol::{Reply, Request};
use crate::control::{ClientError, state};

/// Waits. Returns the guest's exit status, or that of an error.
pub(super) fn run(id: &str) -> i32 {
    wait(id).unwrap_or_else(|error| {
        fail(error);
        OWN_ERROR
    })
}

fn wait(id: &str) -> Result<i32, ClientError> {
    let sandbox = Sandbox::find(id)?;
    let status = match sandbox.listed.ended {
        Some(ended) => ended.status,
        None => match running(&sandbox) {
            // It may have ended between the look and the question.
            Err(error) => match Sandbox::find(id) {
                Ok(now) if now.listed.info == sandbox.listed.info => {
                    now.listed.ended.ok_or(error)?.status
                }
                _ => return Err(error),
            },
            Ok(status) => status,
        },
    };
    state::forget(id, &sandbox.listed.info);
    Ok(status)
}

fn running(sandbox: &Sandbox) -> Result<i32, ClientError> {
    match sandbox.call(&Request::Wait, &[])?.reply()? {
        Reply::Ended { status } => Ok(status),
        other => Err(ClientError::unexpected(&sandbox.listed.id, &other)),
    }
}
