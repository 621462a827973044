use std::fs;

use rstest::rstest;

use super::*;

/// An ELF file with one loadable segment of `file_size` bytes at offset 4096.
fn elf(file_size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096 + 512];
    bytes[..6].copy_from_slice(&ELF64_LE);
    bytes[18..20].copy_from_slice(&X86_64.to_le_bytes());
    bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
    bytes[64..68].copy_from_slice(&PT_LOAD.to_le_bytes());
    bytes[72..80].copy_from_slice(&4096u64.to_le_bytes());
    bytes[96..104].copy_from_slice(&file_size.to_le_bytes());
    bytes
}

/// An EROFS superblock for `blocks` blocks of 4 KiB in a file of two.
fn erofs(blocks: u32) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    bytes[1024..1028].copy_from_slice(&EROFS_MAGIC.to_le_bytes());
    bytes[1024 + 12] = 12;
    bytes[1024 + 36..1024 + 40].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

fn opened(open: fn(&Path) -> Result<File, ArtifactError>, bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("the-file");
    fs::write(&path, bytes).unwrap();
    open(&path).map(drop).map_err(|error| {
        let text = error.to_string();
        assert!(
            text.contains(path.to_str().unwrap()),
            "{text} does not name the file"
        );
        assert!(text.contains("make install"), "{text} tells no remedy");
        text
    })
}

#[test]
fn whole_files_are_taken() {
    assert_eq!(opened(open_kernel, &elf(512)), Ok(()));
    assert_eq!(opened(open_image, &erofs(2)), Ok(()));
}

#[rstest]
#[case(elf(513), "truncated: it has 4608 of 4609 bytes")]
#[case(elf(512)[..100].to_vec(), "truncated")]
#[case(elf(u64::MAX), "not an uncompressed ELF")]
#[case(elf(512)[..10].to_vec(), "truncated")]
#[case(Vec::new(), "truncated")]
#[case(vec![b'x'; 4096], "not an uncompressed ELF")]
fn other_kernels_are_refused(#[case] bytes: Vec<u8>, #[case] word: &str) {
    let error = opened(open_kernel, &bytes).unwrap_err();
    assert!(error.contains(word), "{error}");
}

#[rstest]
#[case(erofs(3), "truncated: it has 8192 of 12288 bytes")]
#[case(erofs(0), "not an EROFS image")]
#[case(vec![0; 8192], "not an EROFS image")]
#[case(erofs(2)[..1030].to_vec(), "truncated")]
#[case(Vec::new(), "truncated")]
fn other_images_are_refused(#[case] bytes: Vec<u8>, #[case] word: &str) {
    let error = opened(open_image, &bytes).unwrap_err();
    assert!(error.contains(word), "{error}");
}

#[test]
fn missing_files_and_directories_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    for path in [missing.as_path(), dir.path()] {
        let error = open_kernel(path).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    let error = check_program("QEMU", &missing, "install it")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("QEMU") && error.contains("install it"),
        "{error}"
    );
    assert!(check_program("QEMU", dir.path(), "").is_err());
    assert!(check_program("shell", Path::new("/bin/sh"), "").is_ok());
}
