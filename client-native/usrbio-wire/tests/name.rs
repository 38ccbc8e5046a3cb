//! The grammar of names in `3fs-virt/iovs`.

use proptest::prelude::*;
use usrbio_wire::name::NAME_MAX;
use usrbio_wire::{IovName, NameError, Priority, RingAttrs, RingFlags};
use uuid::Uuid;

const ID: &str = "50f3d3cf-9a40-4a2e-8f0e-7a1db8d6c5e4";

fn parse(suffix: &str) -> Result<IovName, NameError> {
    IovName::parse(&format!("{ID}{suffix}"))
}

fn ring(suffix: &str) -> RingAttrs {
    parse(suffix).unwrap().ring.unwrap()
}

fn is_part_error(suffix: &str) -> bool {
    matches!(parse(suffix), Err(NameError::Part(..)))
}

#[test]
fn what_the_3fs_client_emits_parses_and_prints_the_same() {
    for suffix in
        ["", ".b1048576", ".w0.t0", ".r0.ph.t0", ".r0.pl.t5", ".r0.t0.f10", ".r-4.t10", ".r64.ph.t1.f11"]
    {
        let name = parse(suffix).unwrap();
        assert_eq!(name.to_string(), format!("{ID}{suffix}"));
    }
    let expected = RingAttrs {
        for_read: true,
        io_depth: -4,
        priority: Priority::Low,
        timeout_ms: 10,
        flags: RingFlags::FORBID_READ_HOLES,
    };
    assert_eq!(ring(".r-4.pl.t10.f10"), expected);
    assert_eq!(parse(".b4096").unwrap().block_size, Some(4096));
}

#[test]
fn a_ring_without_optional_parts_gets_defaults() {
    assert_eq!(ring(".w8"), RingAttrs { io_depth: 8, ..RingAttrs::default() });
}

#[test]
fn the_uuid_may_be_upper_case_but_needs_its_hyphens() {
    assert_eq!(IovName::parse(&ID.to_uppercase()).unwrap().id, Uuid::try_parse(ID).unwrap());
    let bad = [
        "".to_owned(),
        ID.replace('-', ""),
        format!("{{{ID}}}"),
        format!("urn:uuid:{ID}"),
        ID.replace('-', "0"),
        ID.replacen('5', "g", 1),
        ID[1..].to_owned(),
        format!("{ID}0"),
        format!(" {ID}"),
        "submit-ios".to_owned(),
        ".r0.t0".to_owned(),
        "\u{1f980}".repeat(9),
    ];
    for name in bad {
        assert!(matches!(IovName::parse(&name), Err(NameError::Uuid(_))), "{name:?}");
    }
}

#[test]
fn unknown_letters_and_empty_parts_are_ignored() {
    let plain = parse("").unwrap();
    for suffix in [".", "...", ".gdr.d0", ".n1", ".R4", ".x\u{e9}", ".5", ".\u{1f980}"] {
        assert_eq!(parse(suffix), Ok(plain), "{suffix}");
    }
    assert_eq!(ring("..r4..t1."), ring(".r4.t1"));
}

#[test]
fn priorities_are_h_l_n_or_nothing() {
    for (suffix, priority) in [
        (".r0.ph", Priority::High),
        (".r0.pl", Priority::Low),
        (".r0.pn", Priority::Normal),
        (".r0.p", Priority::Normal),
    ] {
        assert_eq!(ring(suffix).priority, priority, "{suffix}");
    }
    assert!([".r0.px", ".r0.phh", ".r0.pH", ".r0.p0", ".r0.p-1"].into_iter().all(is_part_error));
}

#[test]
fn numbers_outside_their_range_are_refused() {
    let wrong = [
        ".b0",
        ".b-1",
        ".b",
        ".b+1",
        ".b1k",
        ".b0x10",
        ".b18446744073709551616",
        ".r",
        ".r+1",
        ".r-",
        ".r--1",
        ".r1-",
        ".r 1",
        ".r2147483648",
        ".r-2147483649",
        ".w1.5.wx",
        ".w\u{661}",
        ".r0.t",
        ".r0.t-1",
        ".r0.t+1",
        ".r0.t2147483648",
        ".r0.t1ms",
        ".r0.f",
        ".r0.f2",
        ".r0.f-1",
        ".r0.f+1",
        ".r0.f0b1",
        ".r0.f1_0",
    ];
    for suffix in wrong {
        assert!(is_part_error(suffix), "{suffix}");
    }
    assert!(is_part_error(&format!(".r0.f1{}", "0".repeat(64))));
}

#[test]
fn the_ends_of_each_range_are_taken() {
    assert_eq!(parse(".b18446744073709551615").unwrap().block_size, Some(u64::MAX));
    assert_eq!(ring(".r-2147483648").io_depth, i32::MIN);
    assert_eq!(ring(".w2147483647.t2147483647").timeout_ms, i32::MAX as u32);
    assert_eq!(ring(&format!(".r0.f{}", "1".repeat(64))).flags.0, u64::MAX);
}

#[test]
fn ring_parts_without_a_direction_are_refused() {
    for suffix in [".ph", ".p", ".t0", ".f1", ".b4096.t0", ".t0.gdr"] {
        assert!(matches!(parse(suffix), Err(NameError::NotARing(_))), "{suffix}");
    }
    assert!(ring(".t5.r1").timeout_ms == 5, "the order of the parts does not matter");
}

#[test]
fn of_two_parts_with_one_letter_the_last_counts() {
    let attrs = ring(".r4.w8.t1.t2");
    assert_eq!((attrs.for_read, attrs.io_depth, attrs.timeout_ms), (false, 8, 2));
}

#[test]
fn names_have_at_most_255_bytes() {
    let longest = format!("{ID}{}", ".".repeat(NAME_MAX - ID.len()));
    assert!(IovName::parse(&longest).is_ok());
    assert_eq!(IovName::parse(&format!("{longest}.")), Err(NameError::TooLong(256)));
}

#[test]
fn messages_escape_what_the_client_chose() {
    let message = IovName::parse("evil\nname").unwrap_err().to_string();
    assert!(!message.contains('\n') && message.contains("evil"), "{message}");
    let message = parse(".r\u{1b}[0m").unwrap_err().to_string();
    assert!(!message.contains('\u{1b}'), "{message}");
}

fn names() -> impl Strategy<Value = IovName> {
    let priority = prop::sample::select(Priority::ALL.to_vec());
    let timeout = 0..=i32::MAX as u32;
    let ring = (any::<bool>(), any::<i32>(), priority, timeout, any::<u64>()).prop_map(
        |(for_read, io_depth, priority, timeout_ms, flags)| RingAttrs {
            for_read,
            io_depth,
            priority,
            timeout_ms,
            flags: RingFlags(flags),
        },
    );
    let block_size = prop::option::of(1..=u64::MAX);
    (any::<u128>(), block_size, prop::option::of(ring)).prop_map(|(id, block_size, ring)| IovName {
        id: Uuid::from_u128(id),
        block_size,
        ring,
    })
}

proptest! {
    #[test]
    fn parse_undoes_print(name in names()) {
        let text = name.to_string();
        prop_assert!(text.len() <= NAME_MAX);
        prop_assert_eq!(IovName::parse(&text), Ok(name));
    }

    #[test]
    fn parse_takes_any_text(text in any::<String>()) {
        let _ = IovName::parse(&text);
    }

    #[test]
    fn what_parses_prints_to_a_stable_name(suffix in "(\\.([brwptfgx]-?[0-9hnl]{0,4})?){0,6}") {
        if let Ok(name) = parse(&suffix) {
            prop_assert_eq!(IovName::parse(&name.to_string()), Ok(name));
        }
    }
}
