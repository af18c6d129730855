//! What is asked before an owner's call runs a VM or commits memory for it.
//! Nothing has changed when the answer is no. While nothing of a family is or
//! was limited, asking costs a lock.

use guestmem::Layer;

use super::policy::{Verdict, headroom, judge};
use super::seat::over;
use super::{MemoryLimit, Whose};
use crate::error::VmError;
use crate::machine::{Family, Machine};

impl Machine {
    /// Whether it may be let run.
    pub(crate) fn may_run(&self) -> Result<(), VmError> {
        if self.gate.has_ended() {
            return Ok(()); // which whoever asks will be told instead
        }
        self.is_within_own_limit()?;
        // Only those that the family's limit has stopped: siblings go on.
        let stopped_for = self.gate.over_limit().map(|limit| limit.whose);
        if stopped_for == Some(Whose::Family)
            && let Some(limit) = self.family.ledger.family_over_for_certain(0)
        {
            return Err(VmError::OverLimit(limit));
        }
        Ok(())
    }

    /// It has been let run, measured a moment ago.
    pub(crate) fn was_let_run(&self) {
        let ledger = &self.family.ledger;
        if ledger.is_watched() {
            let own = headroom(self.seat.known_bytes(), &self.seat.limits());
            ledger.stir(&self.seat, own);
        }
    }

    /// Whether it may be frozen, which commits memory unless it is root RAM.
    pub(crate) fn may_freeze(&self) -> Result<(), VmError> {
        if self.gate.has_ended() {
            return Ok(());
        }
        self.is_within_own_limit()?;
        match self.family.ledger.limits().hard_bytes() {
            Some(_) => {
                let wanted = self.ram().freeze_commits_bytes()?;
                self.family.may_commit(wanted)
            }
            None => Ok(()),
        }
    }

    /// Whether a reset should give memory back, which one in place does not:
    /// a limit that counts this memory has been passed, soft or hard.
    pub(crate) fn is_above_a_limit(&self) -> Result<bool, VmError> {
        let ledger = &self.family.ledger;
        if !ledger.is_watched() {
            return Ok(false);
        }
        let own = judge(self.measure()?, &self.seat.limits());
        let family = judge(ledger.family_bytes(), &ledger.limits());
        Ok(own.max(family) > Verdict::Within)
    }

    fn is_within_own_limit(&self) -> Result<(), VmError> {
        if !self.family.ledger.is_watched() {
            return Ok(());
        }
        let whose = Whose::Vm(self.number());
        match over(whose, self.measure()?, &self.seat.limits()) {
            Some(limit) => Err(VmError::OverLimit(limit)),
            None => Ok(()),
        }
    }

    /// What it has committed now, noted for whoever adds up.
    fn measure(&self) -> Result<u64, VmError> {
        let window = self.ram().window();
        let bytes = window.committed_bytes()?;
        if let Some(notice) = self.seat.note(bytes, window.is_in_file()) {
            self.family.ledger.tell(notice);
        }
        Ok(bytes)
    }
}

impl Family {
    /// Whether `layer` may be forked, which may take copies.
    pub(crate) fn may_fork(&self, layer: &Layer) -> Result<(), VmError> {
        match self.ledger.limits().hard_bytes() {
            Some(_) => self.may_commit(layer.fork_commits_bytes()?),
            None => Ok(()),
        }
    }

    /// Whether so much more may be committed.
    pub(crate) fn may_commit(&self, wanted_bytes: u64) -> Result<(), VmError> {
        match self.ledger.family_over_for_certain(wanted_bytes) {
            Some(limit) => Err(VmError::WouldExceed {
                limit,
                wanted_bytes,
            }),
            None => Ok(()),
        }
    }
}

/// What building a VM checks, before and after it loads the kernel: `bytes` are
/// all that its family has.
pub(crate) fn may_build(
    bytes: u64,
    own: &super::Limits,
    family: &super::Limits,
) -> Result<(), MemoryLimit> {
    let over = over(Whose::Vm(0), bytes, own).or_else(|| over(Whose::Family, bytes, family));
    over.map_or(Ok(()), Err)
}
