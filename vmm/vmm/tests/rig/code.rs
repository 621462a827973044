//! Pieces of a guest's code.

/// Windows of devices, and the configuration space in each (virtio 1.2, 4.2.2).
pub const DEVICES: u32 = 0xd000_0000;
pub const WINDOW: u32 = 0x1000;
pub const CONFIG: u32 = 0x100;

/// Makes the devices' windows reachable: a page directory at 64 KiB for the fourth GiB, whose entry for
/// them is a large page, uncached. (The boot page tables are at 0x9000.)
pub fn map_devices() -> Vec<u8> {
    let mut code = vec![0x48, 0xc7, 0x04, 0x25];
    // mov qword [0xa018], 0x10003
    code.extend(0xa018u32.to_le_bytes());
    code.extend(0x1_0003u32.to_le_bytes());
    // mov rax, imm64; mov [0x10400], rax
    code.extend([0x48, 0xb8]);
    code.extend((u64::from(DEVICES) | 0x93).to_le_bytes());
    code.extend([0x48, 0x89, 0x04, 0x25]);
    code.extend(0x1_0400u32.to_le_bytes());
    code
}

/// Waits until the four bytes at `offset` of a device's configuration are `value`.
pub fn wait_for(device: u32, offset: u32, value: u32) -> Vec<u8> {
    let mut code = vec![0xbb];
    // mov ebx, address; again: pause; mov eax, [rbx]; cmp eax, value; jne again
    code.extend((DEVICES + device * WINDOW + CONFIG + offset).to_le_bytes());
    code.extend([0xf3, 0x90, 0x8b, 0x03, 0x3d]);
    code.extend(value.to_le_bytes());
    code.extend([0x75, 0xf5]);
    code
}

/// Counts, in EBX and in memory at 32 MiB, and says each number as eight letters, a to p. Every line is
/// some milliseconds after the one before, by the time stamp counter. An X if register and memory differ.
pub const COUNT: [u8; 74] = [
    0xbf, 0x00, 0x00, 0x00, 0x02, // mov edi, 0x2000000
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x31, 0xdb, // xor ebx, ebx
    0x39, 0x1f, // again: cmp [rdi], ebx
    0x75, 0x31, // jne differ
    0xff, 0xc3, // inc ebx
    0x89, 0x1f, // mov [rdi], ebx
    0xb9, 0x08, 0x00, 0x00, 0x00, // mov ecx, 8
    0xc1, 0xc3, 0x04, // letter: rol ebx, 4
    0x88, 0xd8, // mov al, bl
    0x24, 0x0f, // and al, 15
    0x04, 0x61, // add al, 'a'
    0xee, // out dx, al
    0xff, 0xc9, // dec ecx
    0x75, 0xf2, // jnz letter
    0xb0, 0x0a, 0xee, // mov al, 10; out dx, al
    0x0f, 0x31, // rdtsc
    0x89, 0xc6, // mov esi, eax
    0xf3, 0x90, // wait: pause
    0x0f, 0x31, // rdtsc
    0x29, 0xf0, // sub eax, esi
    0x3d, 0x00, 0x00, 0x00, 0x01, // cmp eax, 0x1000000
    0x72, 0xf3, // jb wait
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xeb, 0xcb, // jmp again
    0xb0, 0x58, 0xee, // differ: mov al, 'X'; out dx, al
    0xb0, 0x0a, 0xee, // mov al, 10; out dx, al
    0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
];

/// Says which mode it is in by one letter, `p` for 32 bits and `q` for 64; a `-` before it if EBX does not
/// lead to PVH's start information. Then the machine is reset.
pub const MODE: [u8; 35] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33, // cmp dword [ebx], 0x336ec578
    0x74, 0x03, // je right
    0xb0, 0x2d, 0xee, // mov al, '-'; out dx, al
    0x31, 0xc0, // right: xor eax, eax
    0x48, 0x90, // dec eax; nop. In 64-bit mode: a nop
    0x04, 0x71, // add al, 'q'
    0xee, // out dx, al
    0xb0, 0x0a, 0xee, // mov al, 10; out dx, al
    0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
    0xf3, 0x90, 0xeb, 0xfc, // pause; jmp
    0xcc, 0xcc, // nobody gets here
];
