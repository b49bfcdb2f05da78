//! Each layer knows only the ones below: kernels ← models ← decode ← engine ← node, and beside that check.

use std::process::Command;

use serde_json::Value;

const LAYERS: [&str; 6] = [
    "trefoil-kernels",
    "trefoil-models",
    "trefoil-decode",
    "trefoil-engine",
    "trefoil-node",
    "trefoil-check",
];

#[test]
fn dependencies_point_downwards() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let layer = |name: &str| LAYERS.iter().position(|&known| known == name);
    assert_eq!(packages.len(), LAYERS.len(), "a crate that has no place among the layers");

    for package in packages {
        let name = package["name"].as_str().unwrap();
        let above = layer(name).unwrap_or_else(|| panic!("{name} has no place among the layers"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            // Tests may reach for anything below them; only what ships has a direction.
            let ships = dependency["kind"].is_null();
            if let (Some(below), true) = (layer(on), ships) {
                assert!(below < above, "{name} depends on {on}");
            }
            let touches_javascript = on.starts_with("napi");
            assert!(!touches_javascript || name == "trefoil-node", "{name} knows JavaScript: {on}");
            let knows_text = matches!(on, "tokenizers" | "minijinja");
            assert!(!knows_text || name == "trefoil-engine", "{name} knows text: {on}");
        }
    }
}
