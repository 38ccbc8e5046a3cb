//! The fuzz targets on random bytes: for machines without a fuzzer, and so that the targets themselves stay sound.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn names_of_any_bytes(data in prop::collection::vec(any::<u8>(), 0..300)) {
        usrbio_fuzz::name(&data);
    }

    #[test]
    fn names_of_likely_parts(parts in "(\\.[brwptfgx]?[-+]?[0-9hnl]{0,20}){0,8}") {
        usrbio_fuzz::name(parts.as_bytes());
    }

    #[test]
    fn rings_under_any_list_of_calls(data in prop::collection::vec(any::<u8>(), 0..1000)) {
        usrbio_fuzz::ring(&data);
    }
}
