//! Work that nobody waits for, on threads that start when first needed.

use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce() + Send>;

/// Takes down what machines have left behind. Unmapping a touched gigabyte
/// takes tens of milliseconds; a fork that moves to a new shell must not wait
/// for the old one to go.
static REAPER: Worker = Worker::new("vm-reaper");

/// Makes what forks will need next. Not the reaper's thread, which may be busy
/// for long. Whoever asks for that has just forked: making a VM holds up whoever
/// maps memory or faults in this process, so parent and child get a
/// millisecond first. And it stays up for a while after each job: waking it would be
/// half of what a fork from a pool costs.
static BUILDER: Worker = Worker {
    name: "vm-builder",
    delay: Duration::from_millis(1),
    stays_up: Duration::from_millis(10),
    queue: OnceLock::new(),
};

/// Does what may take minutes, because it takes pauses.
static SLOW: Worker = Worker::new("vm-slow");

/// Copies what snapshots show in pieces. Not the thread above, which may take
/// minutes while forks pay for every piece.
static FLATTENER: Worker = Worker::new("vm-flattener");

/// A thread that does jobs in order.
struct Worker {
    name: &'static str,
    /// How long a job waits at least.
    delay: Duration,
    /// How long it looks for jobs now and then before it waits to be woken.
    stays_up: Duration,
    queue: OnceLock<Option<Mutex<Sender<Queued>>>>,
}

/// A job, and when it may be done.
struct Queued {
    due: Instant,
    job: Job,
}

impl Worker {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            delay: Duration::ZERO,
            stays_up: Duration::ZERO,
            queue: OnceLock::new(),
        }
    }

    fn next(&self, jobs: &Receiver<Queued>) -> Option<Queued> {
        let done = Instant::now();
        while done.elapsed() < self.stays_up {
            if let Ok(job) = jobs.try_recv() {
                return Some(job);
            }
            std::thread::sleep(NAP);
        }
        jobs.recv().ok()
    }

    /// Queues a job; gives it back if the host has no thread for it.
    fn queue(&'static self, job: Job) -> Result<(), Job> {
        let start = || {
            let (queue, jobs) = channel::<Queued>();
            let thread = std::thread::Builder::new().name(self.name.into());
            let started = thread.spawn(move || {
                while let Some(Queued { due, job }) = self.next(&jobs) {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    job();
                }
            });
            started.ok().map(|_| Mutex::new(queue))
        };
        match self.queue.get_or_init(start) {
            Some(queue) => {
                let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                let due = Instant::now() + self.delay;
                let sent = queue.send(Queued { due, job });
                sent.map_err(|returned| returned.0.job)
            }
            None => Err(job),
        }
    }
}

/// Between two looks for jobs of a worker that stays up.
const NAP: Duration = Duration::from_micros(500);

/// How many wait for remains to be gone. The reaper takes no pauses then.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// How long the reaper pauses between two steps, so that a guest that shares
/// its core loses little of it at a time.
const PAUSE: Duration = Duration::from_micros(500);

/// Remains on their way; waiting for them to be gone is optional.
#[derive(Debug)]
pub(crate) struct Retired(Receiver<()>);

impl Retired {
    /// Whether they are gone.
    pub(crate) fn is_done(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits until they are gone.
    pub(crate) fn wait(self) {
        WAITING.fetch_add(1, Ordering::SeqCst);
        // The reaper drops its end when it is done; it sends nothing.
        let _ = self.0.recv();
        WAITING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Drops `remains` in the background, or at once if that cannot be; `lessen`
/// makes less of them before, step by step, as long as it returns `true`.
pub(crate) fn retire<R: Any + Send>(
    mut remains: R,
    mut lessen: impl FnMut(&mut R) -> bool + Send + 'static,
) -> Retired {
    let (done, retired) = channel();
    let job: Job = Box::new(move || {
        while lessen(&mut remains) {
            if WAITING.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(PAUSE);
            }
        }
        drop(remains);
        drop(done);
    });
    if let Err(job) = REAPER.queue(job) {
        job();
    }
    Retired(retired)
}

/// Does `job` in the background some time, or never.
pub(crate) fn ahead(job: impl FnOnce() + Send + 'static) {
    if BUILDER.queue(Box::new(job)).is_err() {
        log::debug!("no thread to work ahead");
    }
}

/// Does `step` over and over in the background, with the pauses it asks for,
/// until it asks for none.
pub(crate) fn slowly(step: impl FnMut() -> Option<Duration> + Send + 'static) {
    step_by_step(&SLOW, step);
}

/// The same for what takes a second at most.
pub(crate) fn flatten(step: impl FnMut() -> Option<Duration> + Send + 'static) {
    step_by_step(&FLATTENER, step);
}

fn step_by_step(
    worker: &'static Worker,
    mut step: impl FnMut() -> Option<Duration> + Send + 'static,
) {
    let job = move || {
        while let Some(pause) = step() {
            std::thread::sleep(pause);
        }
    };
    if worker.queue(Box::new(job)).is_err() {
        log::debug!("no thread for what takes long");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn waiting_returns_when_the_remains_are_gone() {
        let alive = Arc::new(());
        let mut steps = 3;
        let lessen = move |_: &mut Arc<()>| {
            steps -= 1;
            steps > 0
        };
        retire(Arc::clone(&alive), lessen).wait();
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    fn jobs_are_done_in_order() {
        let (sender, receiver) = channel();
        for number in 0..10 {
            let sender = sender.clone();
            ahead(move || sender.send(number).unwrap());
        }
        drop(sender);
        assert_eq!(
            receiver.into_iter().collect::<Vec<_>>(),
            (0..10).collect::<Vec<_>>()
        );
    }
}
