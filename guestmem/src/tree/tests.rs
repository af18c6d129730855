//! The tree against its model.

use proptest::prelude::*;

use super::model::{Op, World};

fn op() -> impl Strategy<Value = Op> {
    any::<[u8; 4]>().prop_map(|bytes| Op::from_bytes(&bytes).next().expect("four bytes"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_life_of_a_tree_matches_eager_copies(
        root_in_file: bool,
        ops in prop::collection::vec(op(), 1..120),
    ) {
        World::run(root_in_file, ops.into_iter());
    }
}
