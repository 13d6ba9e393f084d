//! Installs the toolchains of the tests' guests and builds all of them, into `target/guests`.
//!
//! Owns: nothing; it is the way to `tests/guests/mod.rs` for whoever is no test.

#[path = "../tests/guests/mod.rs"]
mod guests;

fn main() -> Result<(), String> {
    for module in guests::install_and_build_all()? {
        println!("{}", module.display());
    }
    Ok(())
}
