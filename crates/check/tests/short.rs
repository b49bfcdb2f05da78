//! The whole run, at small sizes, on this CPU: where everything must hold to the bit.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Runs the binary; gives what it printed and what it wrote.
fn check(name: &str, arguments: &[&str]) -> (Output, Option<Value>) {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.json"));
    // What an earlier run wrote is no answer.
    let _ = std::fs::remove_file(&path);
    let mut command = Command::new(env!("CARGO_BIN_EXE_trefoil-gpu-check"));
    let output = command.args(arguments).arg("--output").arg(&path).output().unwrap();
    let report = std::fs::read(&path).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap());
    (output, report)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn list<'a>(report: &'a Value, name: &str) -> &'a Vec<Value> {
    report[name].as_array().unwrap()
}

/// Every section has run, and every check of it has held.
fn is_whole(report: &Value) {
    for check in list(report, "checks") {
        assert_eq!(check["held"], true, "{check}");
    }
    let sections: Vec<_> =
        list(report, "sections").iter().map(|section| section[0].as_str().unwrap()).collect();
    assert_eq!(sections, ["kernels", "texts", "exact", "devices", "costs", "pid"]);
    let of =
        |name: &str, wanted: &str| list(report, name).iter().filter(|it| it["section"] == wanted).count();
    assert!(of("checks", "devices") > 60 && of("figures", "devices") == 3);
    assert!(of("checks", "kernels") > 10 && of("checks", "texts") > 16 && of("checks", "exact") > 60);
    assert!(of("figures", "costs") > 90 && of("figures", "pid") >= 3);
    for figure in list(report, "figures") {
        assert!(figure["value"].as_f64().is_some_and(|value| value > 0.0), "{figure}");
    }
}

#[test]
fn everything_holds_on_this_cpu() {
    let (output, report) = check("cpu", &["--device", "cpu", "--short"]);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    is_whole(report.as_ref().unwrap());
    let (table, report) = (text(&output.stdout), report.unwrap());
    let texts: Vec<_> = list(&report, "checks").iter().filter(|check| check["section"] == "texts").collect();
    let embedded = models("models");
    assert!(embedded.len() >= 4, "{embedded:?}");
    for model in embedded.iter().chain(&models("fixtures")) {
        let is_there =
            texts.iter().any(|check| check["name"].as_str().unwrap().starts_with(&format!("{model}, ")));
        assert!(is_there, "{model} is not carried");
    }
    let exact: Vec<_> = list(&report, "checks").iter().filter(|check| check["section"] == "exact").collect();
    for way in ["speculative", "bild"] {
        let paired = format!("models/de-en/large, {way} with models/de-en/aligned");
        let is_there = exact.iter().any(|check| check["name"].as_str().unwrap().starts_with(&paired));
        assert!(is_there, "{paired} is not held against plain");
    }
    for wanted in ["kernels    12 of 12 hold", "7B bf16: c(120)", "U 30, b 2, n_s 64: one copy"] {
        assert!(table.contains(wanted), "{wanted} is not in\n{table}");
    }
}

/// The folders below `folder` in which weights lie, by their names in the repository.
fn models(name: &str) -> Vec<String> {
    let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)).unwrap();
    let mut found = Vec::new();
    for entry in entries.map(Result::unwrap) {
        let file = entry.file_name().into_string().unwrap();
        let kind = entry.path().extension().unwrap_or_default().to_owned();
        if entry.path().is_dir() {
            found.extend(models(&format!("{name}/{file}")));
        } else if file.contains("model") && (kind == "safetensors" || kind == "gguf") {
            found.push(name.to_owned());
        }
    }
    found.dedup();
    found
}

#[test]
fn some_sections_and_a_model_of_ones_own() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/de-en/small");
    let (output, report) =
        check("some", &["--device", "cpu", "--short", "--only", "texts", "--model", model]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = report.unwrap();
    assert_eq!(list(&report, "sections").len(), 1);
    assert!(list(&report, "checks").iter().any(|check| check["name"].as_str().unwrap().starts_with(model)));
}

/// A check that does not hold makes the run fail, whatever else it finds.
#[test]
fn a_section_that_fails_is_said_and_changes_the_exit_code() {
    let arguments = ["--device", "cpu", "--short", "--only", "texts", "--model", "no/such/model"];
    let (output, report) = check("failing", &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stdout).contains("FAILED runs to its end: no/such/model"),
        "{}",
        text(&output.stdout)
    );
    assert!(list(&report.unwrap(), "checks").iter().any(|check| check["held"] == false));
}

#[test]
fn what_cannot_run_is_said_in_a_line() {
    for (arguments, code, said) in [
        (vec!["--device", "abacus"], 2, "--device is 'abacus'; allowed: cuda:N or cpu"),
        (vec!["--only", "kernels,tea"], 2, "--only has 'tea'; allowed: kernels, texts"),
        (vec!["--loud"], 2, "unknown option '--loud'"),
    ] {
        let (output, report) = check("refused", &arguments);
        assert_eq!(output.status.code(), Some(code));
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
        assert_eq!(report, None);
    }
    #[cfg(not(feature = "cuda"))]
    assert!(text(&check("without", &[]).0.stderr).contains("this build has no CUDA"));
}
