//! The gate: where the vCPUs of a machine are while they do not run.
//!
//! ```text
//!            resume                         kick, or an event of its own
//!   parked ───────────► out with its thread ────────────────────────────► parked
//!     ▲                                                                     │
//!     └── owner reads, restores or replaces the vCPU (another shell's) ◄────┘
//! ```
//!
//! A parked vCPU lies here, and whoever holds the lock may use it; one that is
//! out belongs to its thread. So state is only ever saved, restored or moved
//! while nothing runs, and that is a matter of ownership, not of discipline.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::event::Event;
use crate::kvm::kick::Kick;
use crate::kvm::shell::Vcpu;
use crate::limits::MemoryLimit;

/// How long to wait for a kicked vCPU before kicking it again.
const KICK_AGAIN: Duration = Duration::from_millis(10);
/// How long a vCPU may take to stop before it is given up. Leaving the guest
/// takes microseconds; only a host that hangs takes this long.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What the owner wants of the vCPU threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Run,
    Park,
    Quit,
}

/// A vCPU did not stop although it was told to, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stuck;

/// What vCPU threads and their owner share.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    /// Set whenever `want` is not `Run`; vCPU threads look at it at each exit.
    stop: AtomicBool,
}

/// What the gate's lock protects.
#[derive(Debug)]
pub(crate) struct GateState {
    want: Want,
    out: usize,
    vcpus: Vec<Option<Vcpu>>,
    kicks: Vec<Arc<Kick>>,
    /// Events nobody has been told of yet.
    events: VecDeque<Event>,
    /// Why the machine is stopped, as last told.
    told: Event,
    /// Stopped for a moment only, by somebody who will let it run again.
    held: bool,
}

/// What can be seen of a gate without waiting for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glance {
    /// Nothing runs, and nothing will before it is let run again.
    AtRest,
    /// It runs, or is stopped for a moment, or somebody is at the gate.
    MayRun,
}

/// A machine stopped for a moment; see [`Gate::hold`].
pub(crate) struct Held<'a> {
    gate: &'a Gate,
    state: MutexGuard<'a, GateState>,
    was_running: bool,
}

impl Deref for Held<'_> {
    type Target = GateState;

    fn deref(&self) -> &GateState {
        &self.state
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut GateState {
        &mut self.state
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.state.held = false;
        if self.was_running {
            self.gate.let_run(&mut self.state);
        }
        // If it did not go on, whoever waits hears why.
        self.gate.changed.notify_all();
    }
}

impl Gate {
    /// A gate with all vCPUs parked.
    pub(crate) fn new(vcpus: Vec<Vcpu>) -> Self {
        let mut state = GateState {
            want: Want::Park,
            out: 0,
            vcpus: Vec::new(),
            kicks: Vec::new(),
            events: VecDeque::new(),
            told: Event::Paused,
            held: false,
        };
        drop(state.replace(vcpus));
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            stop: AtomicBool::new(true),
        }
    }

    /// A vCPU thread waits until its vCPU may run, and takes it. `None`: end.
    pub(crate) fn take(&self, index: usize) -> Option<Vcpu> {
        let mut state = self.lock();
        loop {
            match state.want {
                Want::Quit => return None,
                Want::Run => {
                    if let Some(vcpu) = state.vcpus[index].take() {
                        state.out += 1;
                        return Some(vcpu);
                    }
                }
                Want::Park => {}
            }
            state = self.wait_on(state);
        }
    }

    /// The same for a thread that has other things to do once the machine is
    /// stopped; `None` then.
    pub(crate) fn take_unless_stopped(&self, index: usize) -> Option<Vcpu> {
        let mut state = self.lock();
        while !state.is_stopped() {
            if state.want == Want::Run
                && let Some(vcpu) = state.vcpus[index].take()
            {
                state.out += 1;
                return Some(vcpu);
            }
            state = self.wait_on(state);
        }
        None
    }

    /// A vCPU thread brings its vCPU back; an event stops all the others too.
    pub(crate) fn park(&self, index: usize, vcpu: Vcpu, event: Option<Event>) {
        let mut state = self.lock();
        state.vcpus[index] = Some(vcpu);
        state.out -= 1;
        if let Some(event) = event {
            state.events.push_back(event);
            self.ask_to_park(&mut state);
        }
        self.changed.notify_all();
    }

    /// Whether vCPU threads are to come back.
    pub(crate) fn wants_out(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether the machine has been let run and nothing has stopped it yet.
    pub(crate) fn is_running(&self) -> bool {
        self.lock().want == Want::Run
    }

    /// Lets all vCPUs run, unless something stopped the machine that nobody
    /// has been told of yet: then it stays as it is, for [`wait`](Self::wait).
    pub(crate) fn resume(&self) {
        self.let_run(&mut self.lock());
    }

    fn let_run(&self, state: &mut GateState) {
        if state.want == Want::Park && state.events.is_empty() {
            state.want = Want::Run;
            state.told = Event::Paused;
            self.stop.store(false, Ordering::SeqCst);
            self.changed.notify_all();
        }
    }

    /// Stops all vCPUs and hands them out, parked.
    pub(crate) fn pause(&self) -> Result<MutexGuard<'_, GateState>, Stuck> {
        let mut state = self.lock();
        self.ask_to_park(&mut state);
        self.until_parked(state)
    }

    /// Stops all vCPUs for a moment: they go on, if they ran, when the guard is
    /// dropped. Whoever waits for the machine to stop does not hear of it.
    pub(crate) fn hold(&self) -> Result<Held<'_>, Stuck> {
        let mut state = self.lock();
        let was_running = state.want == Want::Run;
        state.held = was_running;
        self.ask_to_park(&mut state);
        let parked = self.until_parked(state);
        if parked.is_err() {
            self.lock().held = false;
        }
        Ok(Held {
            gate: self,
            state: parked?,
            was_running,
        })
    }

    /// Looks at the gate without waiting for whoever holds it.
    pub(crate) fn glance(&self) -> Glance {
        match self.try_lock() {
            Some(state) if state.want == Want::Park && state.out == 0 && !state.held => {
                Glance::AtRest
            }
            _ => Glance::MayRun,
        }
    }

    /// Stops the machine with `event`, if it runs or will go on in a moment,
    /// without waiting for anybody. False if somebody is at the gate.
    pub(crate) fn try_stop(&self, event: Event) -> bool {
        let Some(mut state) = self.try_lock() else {
            return false;
        };
        let goes_on = state.want == Want::Run || (state.held && state.want == Want::Park);
        let told = |other: &Event| matches!(other, Event::MemoryLimit(_));
        if goes_on && !state.events.iter().any(told) {
            state.events.push_back(event);
            self.ask_to_park(&mut state);
            self.changed.notify_all();
        }
        true
    }

    /// Whether the guest has ended for good.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().final_event().is_some()
    }

    /// The memory limit that has stopped the machine, if one has.
    pub(crate) fn over_limit(&self) -> Option<MemoryLimit> {
        let state = self.lock();
        let mut all = std::iter::once(&state.told).chain(&state.events);
        all.find_map(|event| match event {
            Event::MemoryLimit(limit) => Some(*limit),
            _ => None,
        })
    }

    fn until_parked<'a>(
        &'a self,
        mut state: MutexGuard<'a, GateState>,
    ) -> Result<MutexGuard<'a, GateState>, Stuck> {
        let give_up = Instant::now() + GIVE_UP;
        while state.out > 0 {
            let (next, timeout) = self
                .changed
                .wait_timeout(state, KICK_AGAIN)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            if timeout.timed_out() {
                if Instant::now() >= give_up {
                    return Err(Stuck);
                }
                state.kick_all();
            }
        }
        Ok(state)
    }

    /// Waits until the machine is stopped, and says why; `None` after
    /// `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<Event> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let mut state = self.lock();
        while !state.is_stopped() {
            let left = match until {
                Some(until) => until.checked_duration_since(Instant::now())?,
                None => KICK_AGAIN.max(Duration::from_secs(3600)),
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(state.tell())
    }

    /// Ends all vCPU threads.
    pub(crate) fn quit(&self) {
        let mut state = self.lock();
        state.want = Want::Quit;
        self.stop.store(true, Ordering::SeqCst);
        state.kick_all();
        self.changed.notify_all();
    }

    fn ask_to_park(&self, state: &mut GateState) {
        if state.want == Want::Run {
            state.want = Want::Park;
            self.stop.store(true, Ordering::SeqCst);
            state.kick_all();
            self.changed.notify_all();
        }
    }

    fn wait_on<'a>(&self, state: MutexGuard<'a, GateState>) -> MutexGuard<'a, GateState> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, GateState>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GateState {
    /// Whether the machine stands still, and not only for a moment.
    fn is_stopped(&self) -> bool {
        self.want != Want::Run && self.out == 0 && !self.held
    }

    /// The parked vCPUs.
    pub(crate) fn vcpus(&self) -> impl Iterator<Item = &Vcpu> {
        self.vcpus.iter().flatten()
    }

    /// Puts another shell's vCPUs in; returns the old ones.
    pub(crate) fn replace(&mut self, vcpus: Vec<Vcpu>) -> Vec<Vcpu> {
        self.kicks = vcpus.iter().map(|vcpu| Arc::clone(&vcpu.kick)).collect();
        let old = std::mem::replace(&mut self.vcpus, vcpus.into_iter().map(Some).collect());
        old.into_iter().flatten().collect()
    }

    /// The next thing to tell about why the machine is stopped.
    fn tell(&mut self) -> Event {
        if !self.told.is_final()
            && let Some(event) = self.events.pop_front()
        {
            self.told = event;
        }
        self.told.clone()
    }

    /// The event that ended the guest for good, if one did.
    pub(crate) fn final_event(&self) -> Option<&Event> {
        let mut all = std::iter::once(&self.told).chain(&self.events);
        all.find(|event| event.is_final())
    }

    /// Forgets the events that `over` picks.
    pub(crate) fn forget(&mut self, over: impl Fn(&Event) -> bool) {
        self.events.retain(|event| !over(event));
        if over(&self.told) {
            self.told = Event::Paused;
        }
    }

    /// Says that the machine cannot go on.
    pub(crate) fn fail(&mut self, event: Event) {
        self.events.push_back(event);
    }

    fn kick_all(&self) {
        for kick in &self.kicks {
            kick.kick();
        }
    }
}
