//! Random operations against the naïve model.

#[path = "model/driver.rs"]
mod driver;

use driver::{Op, World};
use proptest::prelude::*;

fn op() -> impl Strategy<Value = Op> {
    let page = any::<u32>;
    let len = any::<u16>;
    prop_oneof![
        6 => page().prop_map(|page| Op::InsertPage { page }),
        4 => page().prop_map(|page| Op::InsertMarker { page }),
        1 => (page(), any::<bool>()).prop_map(|(page, fill)| Op::Reserve { page, fill }),
        6 => page().prop_map(|page| Op::Remove { page }),
        3 => (page(), len()).prop_map(|(page, len)| Op::InsertFrames { page, len }),
        3 => (page(), len()).prop_map(|(page, len)| Op::Mark { page, len }),
        3 => (page(), len()).prop_map(|(page, len)| Op::Clear { page, len }),
        2 => (page(), len(), any::<u8>())
            .prop_map(|(page, len, keep)| Op::RemovePages { page, len, keep }),
        2 => (page(), len(), 0..600u16)
            .prop_map(|(page, len, pops)| Op::TakePages { page, len, pops }),
        4 => Just(Op::Swap),
        1 => page().prop_map(|page| Op::Skew { page }),
        2 => (any::<u8>(), len(), any::<u8>())
            .prop_map(|(node, len, keep)| Op::MergeFrom { node, len, keep }),
        2 => Just(Op::MergeOnto),
        1 => Just(Op::Drain),
    ]
}

/// 200 cases, unless `PROPTEST_CASES` asks for another number.
fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(200),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_sequence_of_operations_agrees_with_the_model(
        ops in proptest::collection::vec(op(), 1..80)
    ) {
        World::run(ops);
    }
}

/// What the fuzz target does, with bytes that are merely pseudo-random.
#[test]
fn arbitrary_bytes_make_operations_that_agree_with_the_model() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..60 {
        let bytes: Vec<u8> = (0..60 * 8)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        World::run(Op::from_bytes(&bytes));
    }
}
