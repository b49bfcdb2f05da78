//! The run on a card that this CPU plays: the kernels alone, because whole models take minutes there. The tests of
//! `trefoil-models` have those.
#![cfg(feature = "emulate")]

use std::process::Command;

use serde_json::Value;

#[test]
fn kernels_hold_on_a_card_that_this_cpu_plays() {
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/emulated.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_trefoil-gpu-check"));
    let arguments = ["--device", "emulated", "--short", "--only", "kernels", "--output", path];
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() > 10 && checks.iter().all(|check| check["held"] == true), "{report}");
    assert_eq!(report["device"], "emulated");
    assert!(report["graph_failure"].is_null());
}
