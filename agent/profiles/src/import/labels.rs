//! The labels of samples: which process of which container a stack is of, as the file says.

use std::collections::HashMap;
use std::sync::Arc;

use podopsy_model::{ContainerRef, Owner, PodRef};

use super::pprof::ImportError;
use super::wire::{Fields, WireValue};

/// What podopsy's own profiles have in their labels. Empty, or 0: the file does not say.
#[derive(Clone, Debug, Default)]
pub(super) struct SampleLabels {
    pub pid: u32,
    pub tid: u32,
    pub comm: Arc<str>,
    pub thread: Arc<str>,
    pub owner: Arc<Owner>,
}

/// A label: the indices of its key and its text, and its number.
type RawLabel = [u64; 4];

/// Each set of labels once: most samples share theirs with many others.
#[derive(Default)]
pub(super) struct LabelSets {
    by_raw: HashMap<Vec<RawLabel>, u32>,
    sets: Vec<SampleLabels>,
}

impl LabelSets {
    /// The number of a set. `text` looks up a text by its index.
    pub fn number(
        &mut self,
        raw: Vec<RawLabel>,
        text: impl Fn(u64) -> String,
        max: usize,
    ) -> Result<u32, ImportError> {
        if let Some(&number) = self.by_raw.get(&raw) {
            return Ok(number);
        }
        if self.sets.len() >= max {
            return Err(ImportError::TooLarge(format!("{max} sets of labels")));
        }
        let number = u32::try_from(self.sets.len()).map_err(|_| ImportError::Damaged)?;
        self.sets.push(SampleLabels::read(&raw, text));
        self.by_raw.insert(raw, number);
        Ok(number)
    }

    pub fn into_sets(self) -> Vec<SampleLabels> {
        self.sets
    }
}

/// Reads a message `Label`.
pub(super) fn raw_label(message: &[u8]) -> Result<RawLabel, ImportError> {
    let mut label = [0; 4];
    for field in Fields(message) {
        if let (number @ 1..=3, WireValue::Number(value)) = field? {
            label[number as usize] = value;
        }
    }
    Ok(label)
}

impl SampleLabels {
    fn read(raw: &[RawLabel], text: impl Fn(u64) -> String) -> SampleLabels {
        let mut labels = SampleLabels::default();
        let none = String::new;
        let mut pod = PodRef { namespace: none(), name: none(), uid: none(), labels: Default::default() };
        let mut container = ContainerRef { name: none(), id: none(), image: none(), attempt: 0 };
        for &[_, key, value, number] in raw {
            let number = u32::try_from(number).unwrap_or(0);
            match text(key).as_str() {
                "pid" => labels.pid = number,
                "tid" => labels.tid = number,
                "comm" => labels.comm = text(value).into(),
                "thread" => labels.thread = text(value).into(),
                "namespace" => pod.namespace = text(value),
                "pod" => pod.name = text(value),
                "container" => container.name = text(value),
                "container_id" => container.id = text(value),
                "image" => container.image = text(value),
                _ => {}
            }
        }
        let pod = Some(pod).filter(|pod| !pod.name.is_empty());
        let container = Some(container).filter(|container| !container.name.is_empty());
        labels.owner = Arc::new(Owner { pod, container, ..Owner::default() });
        labels
    }
}
