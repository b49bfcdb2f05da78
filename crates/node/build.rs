//! Tells the linker about Node.

fn main() {
    napi_build::setup();
}
