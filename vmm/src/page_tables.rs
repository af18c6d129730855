//! The page tables that a guest has at a point in its life.
//!
//! Only to tell whether a reset changes them: see
//! [`translations`](crate::kvm::translations).

use std::collections::BTreeSet;

use guestmem::{GuestRam, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};

const ENTRIES: usize = 512;
const PRESENT: u64 = 1 << 0;
/// Above the lowest level: a large page, and no table.
const LARGE: u64 = 1 << 7;
/// Where an entry has the address of what it leads to.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// More tables than a guest of 90 GiB is given at its start. One that has made
/// more of its own changes them all the time.
const MOST: usize = 128;

type Table = [u64; ENTRIES];

/// Tables and what is in them.
#[derive(Debug)]
pub(crate) struct PageTables(Vec<(GuestAddress, Box<Table>)>);

impl PageTables {
    /// All that `roots` lead to in four levels, in RAM as it is now; `None` if
    /// they are many.
    pub(crate) fn reached_from(roots: impl Iterator<Item = u64>, ram: &GuestRam) -> Option<Self> {
        let mut level: BTreeSet<u64> = roots.map(|cr3| cr3 & ADDRESS).collect();
        let mut known = BTreeSet::new();
        let mut tables = Vec::new();
        for above_lowest in [true, true, true, false] {
            let mut next = BTreeSet::new();
            for address in level {
                // What is not RAM holds no tables.
                let Ok(table) = read(ram, address) else {
                    continue;
                };
                if above_lowest {
                    let leads_on = |entry: &&u64| **entry & (PRESENT | LARGE) == PRESENT;
                    next.extend(table.iter().filter(leads_on).map(|entry| entry & ADDRESS));
                }
                if known.insert(address) {
                    tables.push((GuestAddress(address), table));
                }
                if tables.len() + next.len() > MOST {
                    return None;
                }
            }
            level = next;
        }
        Some(Self(tables))
    }

    /// Whether RAM has just these now.
    pub(crate) fn are_in(&self, ram: &GuestRam) -> bool {
        let mut tables = self.0.iter();
        tables.all(|(address, table)| read(ram, address.0).is_ok_and(|now| now == *table))
    }
}

fn read(ram: &GuestRam, address: u64) -> vm_memory::guest_memory::Result<Box<Table>> {
    let mut bytes = [0; PAGE_SIZE as usize];
    ram.read_slice(&mut bytes, GuestAddress(address))?;
    let (words, _) = bytes.as_chunks();
    Ok(Box::new(std::array::from_fn(|i| {
        u64::from_le_bytes(words[i])
    })))
}
