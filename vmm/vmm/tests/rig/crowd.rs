//! Processors that all run at once. The first wakes the others, which go from real mode to the first's
//! page tables by a page of code below 1 MiB; from there on all run the same.

use super::{LOAD, print};

/// Where the others begin: the page of the SIPI's vector.
const PAGE: u32 = 0x8000;
/// Of the page, behind its code: segment descriptors and what points to them, page tables, entry.
const GDT: usize = 0x60;
const GDT_POINTER: usize = 0x80;
const TABLES: u32 = PAGE + 0x88;
const ENTRY: u32 = PAGE + 0x8c;
/// Of the page: how many have begun, how many rounds were finished by the others, which round is on.
const BEGUN: u32 = PAGE + 0x90;
const FINISHED: u32 = PAGE + 0x94;
const ROUND: u32 = PAGE + 0x98;

/// Where the page lies in what is loaded, and the others' code behind it.
const PAGE_AT: usize = 0x8000;
const OTHERS_AT: usize = PAGE_AT + 0x100;

/// `cli; hlt; jmp`
pub const REST: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

/// 16 and 32 bits.
const WAKE: [u8; 0x5f] = [
    0xfa, // cli
    0x8c, 0xc8, 0x8e, 0xd8, // mov ax, cs; mov ds, ax
    0x66, 0x0f, 0x01, 0x16, 0x80, 0x00, // lgdt [0x80]
    0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, // cr0 |= PE
    0x66, 0xea, 0x1b, 0x80, 0x00, 0x00, 0x08, 0x00, // jmp 8:0x801b
    0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xd0, 0x8e, 0xc0, // ds, ss, es = 16
    0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0, // cr4 |= PAE
    0xa1, 0x88, 0x80, 0x00, 0x00, 0x0f, 0x22, 0xd8, // cr3 = [0x8088]
    0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, // mov ecx, EFER; rdmsr
    0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30, // or eax, LME; wrmsr
    0x0f, 0x20, 0xc0, 0x0d, 0x00, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, // cr0 |= PG
    0xea, 0x56, 0x80, 0x00, 0x00, 0x18, 0x00, // jmp 24:0x8056
    0x8b, 0x04, 0x25, 0x8c, 0x80, 0x00, 0x00, 0xff, 0xe0, // mov eax, [0x808c]; jmp rax
];

/// The page: its code, and descriptors of 32-bit code, data and 64-bit code.
fn page() -> Vec<u8> {
    let mut page = WAKE.to_vec();
    page.resize(GDT, 0);
    for descriptor in [
        0u64,
        0x00cf_9a00_0000_ffff,
        0x00cf_9200_0000_ffff,
        0x00af_9a00_0000_ffff,
    ] {
        page.extend(descriptor.to_le_bytes());
    }
    assert_eq!(page.len(), GDT_POINTER);
    page.extend(0x1fu16.to_le_bytes());
    page.extend((PAGE + GDT as u32).to_le_bytes());
    page
}

/// `mov dword [at], value`
pub fn store(at: u32, value: u32) -> Vec<u8> {
    let mut code = vec![0xc7, 0x04, 0x25];
    code.extend(at.to_le_bytes());
    code.extend(value.to_le_bytes());
    code
}

/// `again: pause; cmp dword [at], value; jb again`
fn wait(at: u32, value: u8) -> Vec<u8> {
    let mut code = vec![0xf3, 0x90, 0x83, 0x3c, 0x25];
    code.extend(at.to_le_bytes());
    code.extend([value, 0x72, 0xf4]);
    code
}

/// Prepares the others' way. RDI is the third level of the page tables for the fourth GiB.
pub fn prepare() -> Vec<u8> {
    let mut code = vec![
        0xb8, 0x93, 0x00, 0xe0, 0xfe, // mov eax, 0xfee00093: the local APIC, not cached
        0x48, 0x89, 0x87, 0xb8, 0x0f, 0x00, 0x00, // mov [rdi + 0xfb8], rax
    ];
    code.push(0xbe); // mov esi, the page
    code.extend((LOAD as u32 + PAGE_AT as u32).to_le_bytes());
    code.push(0xbf); // mov edi, PAGE
    code.extend(PAGE.to_le_bytes());
    code.extend([0xb9, 0x88, 0x00, 0x00, 0x00, 0xf3, 0xa4]); // mov ecx, 0x88; rep movsb
    code.extend([0x0f, 0x20, 0xd8, 0x89, 0x04, 0x25]); // mov rax, cr3; mov [TABLES], eax
    code.extend(TABLES.to_le_bytes());
    code.extend(store(ENTRY, LOAD as u32 + OTHERS_AT as u32));
    for word in [BEGUN, FINISHED, ROUND] {
        code.extend(store(word, 0));
    }
    code
}

/// Wakes the others, or lets them begin anew.
pub fn wake() -> Vec<u8> {
    vec![
        0xbb, 0x00, 0x00, 0xe0, 0xfe, // mov ebx, the local APIC
        0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // it is enabled
        0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x00, 0x45, 0x0c, 0x00, // INIT to all others
        0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x08, 0x46, 0x0c, 0x00, // SIPI: page 8
    ]
}

/// A seed of each one's own in R9, and the windows in RSI.
fn begin() -> Vec<u8> {
    let mut code = vec![0xb8, 0x01, 0x00, 0x00, 0x00]; // mov eax, 1
    code.extend([0xf0, 0x0f, 0xc1, 0x04, 0x25]); // lock xadd [BEGUN], eax
    code.extend(BEGUN.to_le_bytes());
    code.extend([
        0x8d, 0x0c, 0xc5, 0x01, 0x00, 0x00, 0x00, // lea ecx, [rax * 8 + 1]
        0x49, 0xb9, 0x15, 0x7c, 0x4a, 0x7f, 0xb9, 0x79, 0x37, 0x9e, // mov r9, ...
        0x49, 0xd3, 0xc9, // ror r9, cl
        0xbe, 0x00, 0x00, 0x00, 0xd0, // mov esi, 0xd0000000
    ]);
    code
}

/// What all processors do at once, round by round. When all have finished one the first says its word,
/// and the next begins; in the end all rest. `setup` has mapped the windows, as `hostile` does.
pub fn together(cpus: u8, setup: &[u8], rounds: &[(Vec<u8>, &str)]) -> Vec<u8> {
    let mut first = [setup, &prepare(), &wake(), &begin()].concat();
    let mut others = begin();
    for (number, (code, word)) in (1..).zip(rounds) {
        first.extend(code);
        first.extend(wait(FINISHED, number * (cpus - 1)));
        first.extend(print(word));
        first.extend(store(ROUND, number.into()));
        others.extend(code);
        others.extend([0xf0, 0xff, 0x04, 0x25]); // lock inc dword [FINISHED]
        others.extend(FINISHED.to_le_bytes());
        others.extend(wait(ROUND, number));
    }
    first.extend(REST);
    others.extend(REST);
    apart(first, others)
}

/// What the first does, which is to prepare and wake the others, and what they do.
pub fn apart(mut first: Vec<u8>, others: Vec<u8>) -> Vec<u8> {
    assert!(first.len() <= PAGE_AT);
    first.resize(PAGE_AT, 0);
    first.extend(page());
    first.resize(OTHERS_AT, 0);
    first.extend(others);
    first
}
