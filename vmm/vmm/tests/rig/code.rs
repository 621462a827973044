//! Pieces of a guest's code that look at the registers of devices.

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
