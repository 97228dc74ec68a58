//! The unwinder: its maps (slabs that are written by mmap, rules, tables), its programs, and the offsets of mappings.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use anyhow::{Context, anyhow, bail};
use aya::Ebpf;
use aya::maps::{Array, ArrayOfMaps, HashMap, IterableMap, MapData, ProgramArray};
use aya::programs::{PerfEvent, ProgramFd, RawTracePoint};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use podopsy_wire::{ABSENT, FileKey, PythonLayout, Rule, SLAB_WORDS, SLABS_MAX, Table, UnwindLayout};

use crate::btf::Btf;
use crate::pod::Pod;
use crate::program::take_map;
use podopsy_stacks::unwind::KernelMaps;

/// `BPF_F_MMAPABLE` (`<linux/bpf.h>`).
const MMAPABLE: u32 = 1 << 10;

type Slab = Array<MapData, [u32; SLAB_WORDS]>;

/// The maps that the kernel side unwinds by; user space writes them.
pub struct KernelTables {
    slabs: ArrayOfMaps<MapData, Slab>,
    /// Each stays open: opening it again by its id takes CAP_SYS_ADMIN, which the agent gives up.
    open: Vec<Slab>,
    /// The slab that was written last. The others are unmapped, so that they do not count as our memory.
    mapped: Option<(usize, Mapped)>,
    rules: Array<MapData, Pod<Rule>>,
    tables: HashMap<MapData, Pod<FileKey>, Pod<Table>>,
    pythons: Array<MapData, Pod<PythonLayout>>,
    max_files: usize,
}

impl KernelTables {
    pub(crate) fn new(ebpf: &mut Ebpf) -> anyhow::Result<KernelTables> {
        let tables = HashMap::try_from(take_map(ebpf, "TABLES")?)?;
        let max_files = IterableMap::map(&tables).info()?.max_entries() as usize;
        Ok(KernelTables {
            slabs: take_map(ebpf, "SLABS")?.try_into()?,
            open: Vec::new(),
            mapped: None,
            rules: take_map(ebpf, "RULES")?.try_into()?,
            tables,
            pythons: take_map(ebpf, "PYTHONS")?.try_into()?,
            max_files,
        })
    }
}

/// A slab, mapped into our memory.
struct Mapped(NonNull<u32>);

// SAFETY: the mapping is this value's own, and any thread may write it.
unsafe impl Send for Mapped {}

impl Mapped {
    fn new(slab: &Slab) -> anyhow::Result<Mapped> {
        let len = NonZeroUsize::new(SLAB_WORDS * 4).context("a slab has no words")?;
        let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping of a map of this size, at an address of the kernel's choosing.
        let memory = unsafe { mmap(None, len, protection, flags, IterableMap::map(slab).fd().as_fd(), 0) };
        Ok(Mapped(memory.context("map a slab for unwind tables")?.cast()))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and no reference to it is left.
        let _ = unsafe { munmap(self.0.cast(), SLAB_WORDS * 4) };
    }
}

impl KernelMaps for KernelTables {
    fn add_slab(&mut self) -> anyhow::Result<()> {
        let slab = Slab::create(1, MMAPABLE).context("create a slab for unwind tables")?;
        let index = self.open.len();
        self.slabs.set(u32::try_from(index)?, &slab, 0).context("put a slab into the map SLABS")?;
        self.mapped = Some((index, Mapped::new(&slab)?));
        self.open.push(slab);
        Ok(())
    }

    fn free_slabs(&mut self) -> anyhow::Result<()> {
        self.mapped = None;
        // The first slab stands in for the others: a slab without a reference is freed.
        let [first, others @ ..] = self.open.as_slice() else { return Ok(()) };
        for index in 1..=others.len() {
            self.slabs.set(u32::try_from(index)?, first, 0).context("free a slab for unwind tables")?;
        }
        self.open.truncate(1);
        Ok(())
    }

    fn write(&mut self, slab: usize, first: usize, words: &[u32]) -> anyhow::Result<()> {
        if self.mapped.as_ref().is_none_or(|(index, _)| *index != slab) {
            let found = self.open.get(slab).context("there is no such slab for unwind tables")?;
            self.mapped = Some((slab, Mapped::new(found)?));
        }
        let target = self.mapped.as_mut().and_then(|(_, mapped)| {
            // SAFETY: the mapping is this long, and lives as long as this borrow; the kernel side reads words that were
            // published, which are not written again before it has forgotten them.
            let all = unsafe { std::slice::from_raw_parts_mut(mapped.0.as_ptr(), SLAB_WORDS) };
            all.get_mut(first..first.checked_add(words.len())?)
        });
        target.context("a table reaches beyond its slab")?.copy_from_slice(words);
        Ok(())
    }

    fn max_slabs(&self) -> usize {
        SLABS_MAX
    }

    fn max_files(&self) -> usize {
        self.max_files
    }

    fn set_rule(&mut self, number: u16, rule: &Rule) -> anyhow::Result<()> {
        Ok(self.rules.set(u32::from(number), Pod(*rule), 0)?)
    }

    fn set_python(&mut self, number: u32, layout: &PythonLayout) -> anyhow::Result<()> {
        self.pythons.set(number, Pod(*layout), 0).context("put an interpreter into the map PYTHONS")
    }

    fn set_table(&mut self, key: &FileKey, table: &Table) -> anyhow::Result<()> {
        self.tables.insert(Pod(*key), Pod(*table), 0).context("put a table into the map TABLES")
    }

    fn remove_table(&mut self, key: &FileKey) {
        // The entry may be gone already.
        let _ = self.tables.remove(&Pod(*key));
    }

    fn table(&self, key: &FileKey) -> Option<Table> {
        self.tables.get(&Pod(*key), 0).ok().map(|Pod(table)| table)
    }
}

/// Loads the unwinder and lets the sampler call it; returns which program this kernel took.
pub(crate) fn attach(ebpf: &mut Ebpf, has_loop: bool) -> anyhow::Result<&'static str> {
    let name = put(ebpf, 0, has_loop, ["unwind_loop", "unwind_frames"])?;
    let program: &mut RawTracePoint =
        ebpf.program_mut("unwind_exec").context("no program unwind_exec")?.try_into()?;
    program.load().context("load unwind_exec")?;
    program.attach("sched_process_exec").context("attach to the raw tracepoint sched_process_exec")?;
    Ok(name)
}

/// Loads the walker of Python's frames and lets the unwinder call it. Without it, stacks have native frames only.
pub(crate) fn attach_python(
    ebpf: &mut Ebpf,
    layout: &UnwindLayout,
    has_loop: bool,
) -> anyhow::Result<&'static str> {
    if layout.task_fsbase == ABSENT {
        bail!("this kernel's BTF lacks task_struct.thread.fsbase, by which a thread is known");
    }
    put(ebpf, 1, has_loop, ["python_loop", "python_frames"])
}

/// Whether the kernel has the helper `bpf_loop` (5.17), with which the verifier follows a tenth of the instructions.
pub(crate) fn has_loop(btf: &Btf) -> bool {
    btf.enumerator("bpf_func_id", "BPF_FUNC_loop").is_some()
}

/// Puts a program into a slot of UNWINDER: the one with `bpf_loop` if this kernel takes it, else the one without.
fn put(
    ebpf: &mut Ebpf,
    slot: u32,
    has_loop: bool,
    [by_loop, without]: [&'static str; 2],
) -> anyhow::Result<&'static str> {
    let loaded = if has_loop { load(ebpf, by_loop) } else { Err(anyhow!("this kernel has no bpf_loop")) };
    let (fd, name) = match loaded {
        Ok(fd) => (fd, by_loop),
        Err(error) => {
            tracing::debug!("{error:#}: {without} instead of {by_loop}");
            (load(ebpf, without)?, without)
        }
    };
    let map = ebpf.map_mut("UNWINDER").context("the probes have no map UNWINDER")?;
    ProgramArray::try_from(map)?
        .set(slot, &fd, 0)
        .with_context(|| format!("put {name} into the map UNWINDER"))?;
    Ok(name)
}

fn load(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<ProgramFd> {
    let program: &mut PerfEvent =
        ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
    program.load().with_context(|| format!("load {name}"))?;
    Ok(program.fd()?.try_clone()?)
}

/// Where this kernel keeps a process's mappings, by its BTF; an error names the members that it lacks.
pub(crate) fn layout(btf: &Btf) -> anyhow::Result<UnwindLayout> {
    let optional = |structure: &str, path: &str| btf.offset(structure, path).unwrap_or(ABSENT);
    let has_helper = |name| btf.enumerator("bpf_func_id", name).is_some();
    // i_ctime became two plain members in 6.11, and had an underscored name since 6.6.
    let changed = ["i_ctime_sec", "__i_ctime.tv_sec", "i_ctime.tv_sec"];
    let found = UnwindLayout {
        on: 1,
        has_task_pt_regs: has_helper("BPF_FUNC_task_pt_regs").into(),
        task_stack: optional("task_struct", "stack"),
        thread_size: thread_size(btf),
        mm_maple_root: optional("mm_struct", "mm_mt.ma_root"),
        mm_rb_root: optional("mm_struct", "mm_rb.rb_node"),
        mm_vdso: optional("mm_struct", "context.vdso"),
        maple_range_slot: optional("maple_range_64", "slot"),
        maple_arange_slot: optional("maple_arange_64", "slot"),
        vma_start: optional("vm_area_struct", "vm_start"),
        vma_end: optional("vm_area_struct", "vm_end"),
        vma_pgoff: optional("vm_area_struct", "vm_pgoff"),
        vma_file: optional("vm_area_struct", "vm_file"),
        vma_flags: optional("vm_area_struct", "vm_flags"),
        vma_prev: optional("vm_area_struct", "vm_prev"),
        vma_next: optional("vm_area_struct", "vm_next"),
        vma_rb: optional("vm_area_struct", "vm_rb"),
        rb_left: optional("rb_node", "rb_left"),
        rb_right: optional("rb_node", "rb_right"),
        file_inode: optional("file", "f_inode"),
        inode_number: optional("inode", "i_ino"),
        inode_size: optional("inode", "i_size"),
        inode_changed: changed.map(|name| optional("inode", name)).into_iter().min().unwrap_or(ABSENT),
        inode_super: optional("inode", "i_sb"),
        super_device: optional("super_block", "s_dev"),
        exec_file: optional("linux_binprm", "file"),
        file_mode: optional("file", "f_mode"),
        backing_dentry: optional("backing_file", "user_path.dentry"),
        dentry_inode: optional("dentry", "d_inode"),
        task_fsbase: optional("task_struct", "thread.fsbase"),
    };
    let needed = [
        ("vm_area_struct.vm_start", found.vma_start),
        ("vm_area_struct.vm_end", found.vma_end),
        ("vm_area_struct.vm_pgoff", found.vma_pgoff),
        ("vm_area_struct.vm_file", found.vma_file),
        ("file.f_inode", found.file_inode),
        ("inode.i_ino", found.inode_number),
        ("inode.i_size", found.inode_size),
        ("inode.i_ctime", found.inode_changed),
        ("inode.i_sb", found.inode_super),
        ("super_block.s_dev", found.super_device),
        ("mm_struct.mm_mt or .mm_rb", found.mm_maple_root.min(found.mm_rb_root)),
    ];
    let missing: Vec<_> = needed.iter().filter(|(_, at)| *at == ABSENT).map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        bail!("this kernel's BTF lacks {}", missing.join(", "));
    }
    Ok(found)
}

/// THREAD_SIZE; 0: not known. Only a kernel without the helper is asked (before 5.15). `thread_union` is of that size, but
/// nothing in an x86 kernel uses it, so that Debian's 5.10 has it in no BTF; an interrupt's stack is there, and on
/// x86-64 it is as large (`<asm/page_64_types.h>`: the order of both is 2 + KASAN_STACK_ORDER).
fn thread_size(btf: &Btf) -> u32 {
    let interrupts = || if cfg!(target_arch = "x86_64") { btf.struct_size("irq_stack") } else { None };
    btf.union_size("thread_union").or_else(interrupts).unwrap_or(0)
}
