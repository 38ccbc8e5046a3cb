//! libFuzzer target; built without `--cfg fuzzing`, it runs the inputs named on the command line.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| usrbio_fuzz::ring(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    usrbio_fuzz::replay(usrbio_fuzz::ring)
}
