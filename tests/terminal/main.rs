//! `sandbox` on a terminal: job control, programs that fill the screen, window size, settings.
//!
//! The user of these tests sits at a real pty with a real shell on it ([`user`]), or at a pane of a
//! real tmux, which shows what a screen would ([`screen`]). Words that a guest is to print are
//! spelled so that their echo does not contain them: `a$((1))b`.

#[path = "../common/mod.rs"]
mod common;

mod asking;
mod jobs;
mod later;
mod screen;
mod screens;
mod settings;
mod user;
