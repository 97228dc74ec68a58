//! Loads the object and attaches what is wanted of it.

use anyhow::{anyhow, bail};
use aya::Ebpf;
use bytemuck::bytes_of;
use podopsy_system::pid_namespace;
use podopsy_wire::{ABSENT, Config, Layout, SCOPE_NODE, UnwindLayout};

use crate::btf::Btf;
use crate::refusal::explain;
use crate::{CpuProbeOptions, ProbeOptions, Probes, cpu, dns, layout, loader, oom, sigkill, sizes, unwind};

/// The compiled kernel side; `cargo xtask build-ebpf` makes it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../probe-ebpf/prebuilt/podopsy-probe.o");

/// What the probes read of this kernel's types. The BTF itself is 30 MB, and dropped before the object is loaded.
struct KernelTypes {
    layout: Layout,
    victim_is_task: bool,
    signal: podopsy_wire::SigkillLayout,
    unwind: UnwindLayout,
    has_loop: bool,
}

impl KernelTypes {
    /// Reads this kernel's BTF. A kernel whose mappings cannot be found has no unwinding by tables.
    fn read(options: &ProbeOptions, degraded: &mut Vec<String>) -> anyhow::Result<KernelTypes> {
        let btf = Btf::from_kernel()?;
        let shape = layout::read(&btf)?;
        let unwind = match &options.cpu {
            Some(CpuProbeOptions { unwind: true, .. }) => unwind::layout(&btf).unwrap_or_else(|error| {
                degraded.push(no_tables(&error));
                UnwindLayout::OFF
            }),
            _ => UnwindLayout::OFF,
        };
        Ok(KernelTypes {
            layout: shape.layout,
            victim_is_task: shape.victim_is_task,
            signal: sigkill::layout(&btf),
            unwind,
            has_loop: unwind::has_loop(&btf),
        })
    }
}

/// What attaching came to, probe by probe.
#[derive(Default)]
struct Attached {
    hooks: Vec<String>,
    degraded: Vec<String>,
    probes: Vec<(&'static str, bool)>,
    /// The first event probe that could not attach.
    failed: Option<anyhow::Error>,
}

impl Attached {
    /// Notes an event probe. One that cannot attach loses its own events; the others go on.
    fn note(
        &mut self,
        name: &'static str,
        lost: &str,
        tried: &'static str,
        attached: anyhow::Result<String>,
    ) {
        self.probes.push((name, attached.is_ok()));
        match attached {
            Ok(hook) => self.hooks.push(hook),
            Err(error) => {
                self.degraded.push(format!("{lost}: {error:#}"));
                self.failed.get_or_insert(explain(error, tried));
            }
        }
    }
}

impl Probes {
    /// Loads what is wanted and nothing else. Fails where no event probe, or no sampler, can work; the error names the
    /// probe, and what to do. What is lost otherwise is in [`Probes::degraded`].
    pub fn load(options: &ProbeOptions) -> anyhow::Result<Probes> {
        raise_memlock();
        let mut attached = Attached::default();
        let types = KernelTypes::read(options, &mut attached.degraded)?;
        let mut ebpf = load_object(options, &types)?;
        attach_event_probes(&mut ebpf, options, &types, &mut attached);
        if let Some(error) = attached.failed.take().filter(|_| attached.hooks.is_empty()) {
            return Err(error);
        }
        let by_tables = match &options.cpu {
            Some(cpu) => attach_sampler(&mut ebpf, cpu, &types, &mut attached)?,
            None => false,
        };
        for what in &attached.degraded {
            tracing::warn!("{what}");
        }
        Ok(Probes {
            ebpf,
            sampling: options.cpu.as_ref().map(|cpu| cpu.sampling),
            samplers: Vec::new(),
            by_tables,
            hooks: attached.hooks,
            degraded: attached.degraded,
            attached: attached.probes,
        })
    }
}

/// The object with this kernel's offsets and the settings in its globals, and its maps in the sizes that are needed.
fn load_object(options: &ProbeOptions, types: &KernelTypes) -> anyhow::Result<Ebpf> {
    let config = Config {
        pid_namespace: nested_namespace(&types.layout)?,
        layout: types.layout,
        victim_is_task: types.victim_is_task.into(),
        scope: options.cpu.as_ref().map_or(SCOPE_NODE, |cpu| cpu.scope.code()),
        sample_budget: options.cpu.as_ref().map_or(0, |cpu| cpu.budget),
    };
    let dns = dns::config(options.dns.as_ref());
    let level = crate::log_level();
    let mut loader = loader::new();
    dns::size_maps(&mut loader);
    sizes::shrink(options, &mut loader);
    loader
        .override_global("CONFIG", bytes_of(&config), true)
        .override_global("SIGKILL_LAYOUT", bytes_of(&types.signal), true)
        .override_global("DNS", bytes_of(&dns), true)
        .override_global("UNWIND_LAYOUT", bytes_of(&types.unwind), true)
        .override_global(aya_log::LEVEL, &level, true)
        .load(OBJECT)
        .map_err(|error| explain(anyhow!(error), "load the probes"))
}

/// `Config::pid_namespace`.
fn nested_namespace(at: &Layout) -> anyhow::Result<u32> {
    let Some(namespace) = pid_namespace::nested() else { return Ok(0) };
    if [at.task_thread_pid, at.pid_level, at.pid_numbers, at.namespace_inum].contains(&ABSENT) {
        bail!(
            "this is a pid namespace of its own, and this kernel's types do not say which processes are in it: \
             run podopsy on the node, or in a pod with hostPID: true"
        );
    }
    Ok(namespace)
}

fn attach_event_probes(
    ebpf: &mut Ebpf,
    options: &ProbeOptions,
    types: &KernelTypes,
    attached: &mut Attached,
) {
    if options.oom {
        let hook = oom::attach(ebpf, types.victim_is_task);
        attached.note("oom", "no OOM kill is seen", "attach the oom probe", hook);
    }
    if options.sigkill {
        let hook = sigkill::attach(ebpf);
        attached.note("sigkill", "senders of SIGKILL are not seen", "attach the sigkill probe", hook);
    }
    if let Some(dns) = &options.dns {
        let hook = dns::attach(ebpf, dns).map(|(hook, left_out)| {
            attached.degraded.extend(left_out);
            hook
        });
        attached.note("dns", "no DNS query is seen", "attach the dns probe", hook);
    }
}

/// Loads the sampler and its unwinders; true: user stacks are unwound by tables. A kernel that refuses the unwinder has
/// frame pointers.
fn attach_sampler(
    ebpf: &mut Ebpf,
    options: &CpuProbeOptions,
    types: &KernelTypes,
    attached: &mut Attached,
) -> anyhow::Result<bool> {
    let mut stacks = vec!["frame pointers"];
    if types.unwind.on != 0 {
        match unwind::attach(ebpf, types.has_loop) {
            Ok(program) => stacks = vec!["tables", program],
            Err(error) => attached.degraded.push(no_tables(&explain(error, "load the unwinder"))),
        }
    }
    let by_tables = stacks.len() > 1;
    if by_tables {
        match unwind::attach_python(ebpf, &types.unwind, types.has_loop) {
            Ok(program) => stacks.push(program),
            Err(error) => {
                let error = explain(error, "load the walker of Python's frames");
                attached.degraded.push(format!(
                    "Python's functions: {error:#}; stacks show the interpreter's frames only"
                ));
            }
        }
    }
    let hook = cpu::load(ebpf, options).map_err(|error| explain(error, "load the oncpu probe"))?;
    attached.hooks.push(format!("{hook}; user stacks by {}", stacks.join(", ")));
    Ok(by_tables)
}

fn no_tables(error: &anyhow::Error) -> String {
    format!("stacks by tables: {error:#}; stacks are what frame pointers give")
}

/// Before 5.11 maps are charged to RLIMIT_MEMLOCK. Without CAP_SYS_RESOURCE this fails, which newer kernels do not need:
/// so a failure is not reported here, that of a map's creation would be.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}
