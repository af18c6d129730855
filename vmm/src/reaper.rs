//! Taking down what machines have left behind, where nobody waits for it.
//!
//! Unmapping a touched gigabyte takes tens of milliseconds; a fork that moves
//! to a new shell must not wait for the old one to go.

use std::any::Any;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

type Remains = Box<dyn Any + Send>;
type Job = (Remains, Sender<()>);

/// Remains on their way; waiting for them to be gone is optional.
#[derive(Debug)]
pub(crate) struct Retired(Receiver<()>);

impl Retired {
    /// Whether they are gone.
    pub(crate) fn is_done(&self) -> bool {
        matches!(
            self.0.try_recv(),
            Err(std::sync::mpsc::TryRecvError::Disconnected)
        )
    }

    /// Waits until they are gone.
    pub(crate) fn wait(self) {
        // The reaper drops its end when it is done; it sends nothing.
        let _ = self.0.recv();
    }
}

/// Drops `remains` in the background.
pub(crate) fn retire(remains: impl Any + Send) -> Retired {
    let (done, retired) = channel();
    let job: Job = (Box::new(remains), done);
    if let Some(queue) = queue() {
        let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(returned) = queue.send(job) {
            drop(returned); // no reaper any more: here and now, then
        }
    }
    Retired(retired)
}

/// The reaper's queue; none if the host has no thread for it, in which case
/// remains are dropped at once.
fn queue() -> Option<&'static Mutex<Sender<Job>>> {
    static QUEUE: OnceLock<Option<Mutex<Sender<Job>>>> = OnceLock::new();
    let start = || {
        let (queue, jobs) = channel::<Job>();
        let thread = std::thread::Builder::new().name("vm-reaper".into());
        let reap = move || {
            for (remains, done) in jobs {
                drop(remains);
                drop(done);
            }
        };
        thread.spawn(reap).ok().map(|_| Mutex::new(queue))
    };
    QUEUE.get_or_init(start).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn waiting_returns_when_the_remains_are_gone() {
        let alive = Arc::new(());
        retire(Arc::clone(&alive)).wait();
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
