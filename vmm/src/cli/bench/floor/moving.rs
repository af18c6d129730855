//! A running guest that moves to another VM: what is left of a fork of a running
//! VM when only the syscalls are counted.
//!
//! The guest writes to the file itself. At the move its vCPU is kicked out, its
//! registers are read and set on a vCPU whose memory is a private mapping of
//! the same file, and it goes on there: from then on the file is what a child
//! may share.

use std::io;
use std::ops::Not;
use std::sync::Once;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::machine::{Exit, Machine};
use super::state::State;

/// A signal that nobody else here uses, by its distance from the first
/// real-time one.
const KICK: i32 = 11;
/// When to kick again: a signal that comes just before the guest is entered has
/// no effect.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// A guest that runs on a thread of its own.
pub(in super::super) struct Running {
    thread: Option<JoinHandle<io::Result<Machine>>>,
    moves: Sender<Option<Machine>>,
    moved: Receiver<Machine>,
}

impl Running {
    /// Lets `machine` run. `state` is some state of it; it is overwritten.
    pub(in super::super) fn start(mut machine: Machine, mut state: State) -> io::Result<Self> {
        static HANDLER: Once = Once::new();
        extern "C" fn ignore(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        let mut registered = Ok(());
        HANDLER.call_once(|| registered = register_signal_handler(SIGRTMIN() + KICK, ignore));
        registered?;
        let (moves, orders) = channel::<Option<Machine>>();
        let (done, moved) = channel();
        let body = move || loop {
            if let Exit::Control(register) = machine.run()? {
                return Err(io::Error::other(format!("an exit to {register:#x}")));
            }
            match orders.try_recv() {
                Ok(Some(next)) => {
                    state.save_again(&machine.vcpu)?;
                    state.restore(&next.vcpu)?;
                    let old = std::mem::replace(&mut machine, next);
                    if done.send(old).is_err() {
                        return Ok(machine);
                    }
                }
                // A kick that came late.
                Err(TryRecvError::Empty) => {}
                _ => return Ok(machine),
            }
        };
        let thread = std::thread::Builder::new().name("floor-vcpu".into());
        Ok(Self {
            thread: Some(thread.spawn(body)?),
            moves,
            moved,
        })
    }

    /// Moves the guest to `next`, which lacks nothing but registers; returns
    /// where it was.
    pub(in super::super) fn move_to(&self, next: Machine) -> io::Result<Machine> {
        let stopped = || io::Error::other("the guest has stopped");
        self.moves.send(Some(next)).map_err(|_| stopped())?;
        loop {
            self.kick();
            match self.moved.recv_timeout(KICK_AGAIN) {
                Ok(old) => return Ok(old),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(stopped()),
            }
        }
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            // A thread that has ended needs no kick.
            let _ = thread.kill(SIGRTMIN() + KICK);
        }
    }
}

impl Running {
    /// Ends the thread; returns the guest where it is now.
    pub(in super::super) fn stop(mut self) -> io::Result<Machine> {
        self.end()
            .unwrap_or_else(|| Err(io::Error::other("it has been stopped")))
    }

    fn end(&mut self) -> Option<io::Result<Machine>> {
        let _ = self.moves.send(None);
        while self.thread.as_ref()?.is_finished().not() {
            self.kick();
            std::thread::sleep(Duration::from_millis(1));
        }
        let ended = self.thread.take()?.join();
        Some(ended.unwrap_or_else(|_| Err(io::Error::other("its thread panicked"))))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What went wrong has been said already, by a move that was refused.
        let _ = self.end();
    }
}
