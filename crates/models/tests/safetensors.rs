//! Folders with safetensors: sound ones, shards, and broken ones.

#![expect(clippy::unwrap_used, reason = "a test")]

mod files;

use std::fs;
use std::path::Path;

use files::{Folder, Random, f32s, safetensors};
use trefoil_kernels::WeightType;
use trefoil_models::{ErrorKind, Weights};

const HEADER: &str = r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;

fn data() -> Vec<u8> {
    let mut data = f32s([1.0, 2.0, 3.0, 4.0]);
    data.extend([0x80, 0x3f].repeat(3));
    data
}

fn read_all(folder: &Path) -> trefoil_models::Result<()> {
    let weights = Weights::open(folder)?;
    for name in weights.names() {
        weights.read(name, weights.shape(name).unwrap())?;
    }
    Ok(())
}

fn failure(header: &str, data: &[u8]) -> String {
    let folder = Folder::new();
    folder.write("model.safetensors", safetensors(header, data));
    read_all(&folder.0).unwrap_err().to_string()
}

#[test]
fn one_file() {
    let folder = Folder::new();
    folder.write("model.safetensors", safetensors(HEADER, &data()));
    let mut weights = Weights::open(&folder.0).unwrap();
    let a = weights.read("a", &[2, 2]).unwrap();
    assert_eq!((a.ty, a.shape, a.bytes), (WeightType::F32, vec![2, 2], f32s([1.0, 2.0, 3.0, 4.0])));
    assert_eq!(weights.read("b", &[3]).unwrap().ty, WeightType::Bf16);
    assert_eq!((weights.total_bytes(), weights.parameters()), (22, 7));
    assert!(weights.metadata().is_none());
    weights.read_dense_as(WeightType::F32);
    assert_eq!((weights.total_bytes(), weights.read("b", &[3]).unwrap().ty), (28, WeightType::F32));
}

#[test]
fn shards() {
    let folder = Folder::new();
    let one = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    let two = r#"{"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    folder.write("1.safetensors", safetensors(one, &f32s([1.0; 4])));
    folder.write("2.safetensors", safetensors(two, &f32s([2.0; 4])));
    let index = |a: &str, b: &str| format!(r#"{{"weight_map":{{"a":"{a}","b":"{b}"}}}}"#);
    folder.write("model.safetensors.index.json", index("1.safetensors", "2.safetensors"));
    let weights = Weights::open(&folder.0).unwrap();
    assert_eq!(weights.read("b", &[4]).unwrap().bytes, f32s([2.0; 4]));

    for shard in ["../1.safetensors", "x/1.safetensors", "/etc/passwd", "..", "", r"c:\\x", "."] {
        folder.write("model.safetensors.index.json", index("1.safetensors", shard));
        let message = read_all(&folder.0).unwrap_err().to_string();
        assert!(message.contains("allowed are plain file names"), "{message}");
    }
    folder.write("model.safetensors.index.json", index("2.safetensors", "1.safetensors"));
    assert!(read_all(&folder.0).unwrap_err().to_string().contains("which does not hold it"));
    folder.write("model.safetensors.index.json", index("1.safetensors", "3.safetensors"));
    assert_eq!(read_all(&folder.0).unwrap_err().kind(), ErrorKind::Load);
    folder.write("model.safetensors.index.json", "[]");
    assert!(read_all(&folder.0).unwrap_err().to_string().contains("not an index"));
    folder.write("2.safetensors", safetensors(one, &f32s([1.0; 4])));
    folder.write("model.safetensors.index.json", index("1.safetensors", "2.safetensors"));
    assert!(read_all(&folder.0).unwrap_err().to_string().contains("appears in two shards"));
}

#[test]
fn broken_headers() {
    let tensor = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    let data = [0; 16];
    assert!(failure(&tensor("[4611686018427387904,4]", 0, 16), &data).contains("overflow"));
    assert!(failure(&tensor("[5]", 0, 16), &data).contains("invalid shape"));
    assert!(failure(&tensor("[2]", 8, 16), &data).contains("invalid offset for tensor `a`"));
    assert!(failure(&tensor("[4]", 16, 0), &data).contains("invalid offset"));
    assert!(failure(&tensor("[4]", 0, 16), &data[..15]).contains("bytes; its header"));
    assert!(failure("{", &data).contains("broken header"));
    let two = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    assert!(failure(two, &data).contains("invalid offset for tensor"));
    assert!(failure(&tensor("[4]", 0, 16), &f32s([1.0, f32::NAN, 0.0, 0.0])).contains("NaN"));
    let whole = r#"{"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}"#;
    assert!(failure(whole, &data).contains("has type I64; allowed are F32"));

    let folder = Folder::new();
    folder.write("model.safetensors", [&(200u64 << 20).to_le_bytes()[..], &[b' '; 64]].concat());
    assert!(read_all(&folder.0).unwrap_err().to_string().contains("has a header of 209715200 bytes"));
}

#[test]
fn truncation_and_damage() {
    let folder = Folder::new();
    let whole = safetensors(HEADER, &data());
    for len in 0..whole.len() {
        folder.write("model.safetensors", &whole[..len]);
        assert_eq!(read_all(&folder.0).unwrap_err().kind(), ErrorKind::Load, "at {len}");
    }
    let mut random = Random(11);
    for _ in 0..3000 {
        let mut damaged = whole.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(damaged.len());
            damaged[at] = random.next() as u8;
        }
        folder.write("model.safetensors", &damaged);
        // Either answer is right; a panic is not.
        let _ = read_all(&folder.0);
    }
}

#[test]
fn places_that_hold_no_model() {
    let folder = Folder::new();
    assert!(read_all(&folder.0).unwrap_err().to_string().contains("holds neither"));
    assert_eq!(read_all(&folder.0.join("nowhere")).unwrap_err().kind(), ErrorKind::Load);
    fs::create_dir(folder.0.join("model.gguf")).unwrap();
    assert!(read_all(&folder.0.join("model.gguf")).unwrap_err().to_string().contains("holds neither"));
    let text = folder.write("model.txt", "hello");
    assert!(read_all(&text).unwrap_err().to_string().contains("neither a folder nor a .gguf file"));
    fs::create_dir(folder.0.join("model.safetensors")).unwrap();
    assert!(read_all(&folder.0).unwrap_err().to_string().contains("is not a file"));
}

#[cfg(unix)]
#[test]
fn links_in_a_circle() {
    let folder = Folder::new();
    std::os::unix::fs::symlink("model.safetensors", folder.0.join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("b.gguf", folder.0.join("a.gguf")).unwrap();
    std::os::unix::fs::symlink("a.gguf", folder.0.join("b.gguf")).unwrap();
    assert!(read_all(&folder.0).unwrap_err().to_string().contains("cannot be opened"));
    assert_eq!(read_all(&folder.0.join("a.gguf")).unwrap_err().kind(), ErrorKind::Load);

    let folder = Folder::new();
    let index = "model.safetensors.index.json";
    std::os::unix::fs::symlink(index, folder.0.join(index)).unwrap();
    assert!(read_all(&folder.0).unwrap_err().to_string().contains("cannot be opened"));
}
