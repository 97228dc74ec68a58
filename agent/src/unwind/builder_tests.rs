//! The thread's queue, full.

use podopsy_wire::{PythonLayout, Rule, SLAB_WORDS, TABLE_ASKED, Table};

use super::*;

/// The kernel side's map of files; taking one out waits for the gate.
#[derive(Clone, Default)]
struct Gated {
    tables: Arc<Mutex<HashMap<FileKey, Table>>>,
    gate: Arc<Mutex<()>>,
}

impl Kernel for Gated {
    fn add_slab(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
    fn write(&mut self, _: usize, _: usize, _: &[u32]) -> anyhow::Result<()> {
        Ok(())
    }
    fn max_slabs(&self) -> usize {
        1
    }
    fn set_rule(&mut self, _: u16, _: &Rule) -> anyhow::Result<()> {
        Ok(())
    }
    fn set_python(&mut self, _: u32, _: &PythonLayout) -> anyhow::Result<()> {
        Ok(())
    }
    fn set_table(&mut self, key: &FileKey, table: &Table) -> anyhow::Result<()> {
        self.tables.lock().unwrap().insert(*key, *table);
        Ok(())
    }
    fn remove_table(&mut self, key: &FileKey) {
        drop(self.gate.lock().unwrap());
        self.tables.lock().unwrap().remove(key);
    }
    fn table(&self, key: &FileKey) -> Option<Table> {
        self.tables.lock().unwrap().get(key).copied()
    }
}

#[test]
fn a_file_whose_request_was_dropped_can_be_asked_for_again() {
    let kernel = Gated::default();
    let builder = Builder::start(kernel.clone(), SLAB_WORDS * 4, &Of::Cgroups(Vec::new())).unwrap();
    let shut = kernel.gate.lock().unwrap();
    let asked = Table { state: TABLE_ASKED, slab: 0, first: 0, first_page: 0, pages: 0, used: 0, python: 0 };
    for inode in 1..=QUEUE as u64 + 50 {
        let key = FileKey { inode, ..FileKey::VDSO };
        kernel.tables.lock().unwrap().insert(key, asked);
        // No process has this number: whoever is answered is forgotten, too.
        builder.request(TableRequest { key, address: 4096, pid: u32::MAX, unused: 0 });
    }
    drop(shut);
    let begin = Instant::now();
    let left = || kernel.tables.lock().unwrap().values().filter(|table| table.state == TABLE_ASKED).count();
    while left() > 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} are asked for ever", left());
        std::thread::sleep(Duration::from_millis(10));
    }
    let losses = builder.stop().losses;
    assert!((49..=50).contains(&losses["unwind_queue"]), "{losses:?}");
    assert!(losses["unwind_process_gone"] >= QUEUE as u64);
}
