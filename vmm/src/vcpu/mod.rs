//! Running vCPUs: one thread each, all of them stopped and started together.
//!
//! * [`gate`]: where vCPUs wait while they are stopped
//! * [`run`]: from one stop to the next
//! * [`exit`]: what to do about one exit from the guest

mod exit;
pub(crate) mod gate;
pub(crate) mod run;
