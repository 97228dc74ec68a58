//! Names without a runtime: `/var/log/pods/<namespace>_<pod>_<uid>/<container>/<attempt>.log`.
//!
//! The kubelet creates these folders with any runtime. This module must not depend on cgroups or CRI.

use std::fs;
use std::path::Path;

use super::text::field;

/// What the log folder of a pod shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLogFolder {
    pub namespace: String,
    pub pod: String,
    /// The name and the attempt of the container that was asked for: known if a log is a link whose target contains the id
    /// (cri-dockerd), or if the pod has one container.
    pub container: Option<(String, u32)>,
}

/// The largest number of folders that are read: a node has some hundred pods, and leftovers of others.
const FOLDERS_MAX: usize = 10_000;

/// Finds a pod by its uid, and in it the container `id`.
pub fn find(root: &Path, uid: &str, id: Option<&str>) -> Option<PodLogFolder> {
    let suffix = format!("_{uid}");
    let entries = fs::read_dir(root).ok()?;
    entries.flatten().take(FOLDERS_MAX).find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        // Neither namespaces nor pod names contain an underscore (RFC 1123), so this is unambiguous.
        let (namespace, pod) = name.strip_suffix(&suffix)?.split_once('_')?;
        let container = id.and_then(|id| container(&entry.path(), id));
        Some(PodLogFolder { namespace: field(namespace), pod: field(pod), container })
    })
}

fn container(pod: &Path, id: &str) -> Option<(String, u32)> {
    let folders: Vec<_> = fs::read_dir(pod).ok()?.flatten().take(FOLDERS_MAX).collect();
    let mut only = None;
    for folder in &folders {
        let Ok(name) = folder.file_name().into_string() else { continue };
        let mut last = 0;
        for log in fs::read_dir(folder.path()).into_iter().flatten().flatten().take(FOLDERS_MAX) {
            let attempt = log.file_name().to_str().and_then(|n| n.strip_suffix(".log")?.parse::<u32>().ok());
            let Some(attempt) = attempt else { continue };
            last = last.max(attempt);
            if fs::read_link(log.path()).is_ok_and(|to| to.to_string_lossy().contains(id)) {
                return Some((field(&name), attempt));
            }
        }
        only = Some((field(&name), last));
    }
    // With several containers the folder does not show which one has the id, and a guess would look like a fact.
    only.filter(|_| folders.len() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "8c1ee0a4-5f3b-4c1e-9f0a-0a1b2c3d4e5f";

    #[test]
    fn one_container_is_named_and_two_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join(format!("finance_pricing-7f9c_{UID}"));
        fs::create_dir_all(pod.join("app")).unwrap();
        fs::create_dir_all(dir.path().join("junk")).unwrap();
        for name in ["0.log", "2.log", "1.log.gz", "x.log"] {
            fs::write(pod.join("app").join(name), "").unwrap();
        }
        let found = find(dir.path(), UID, Some("abc")).unwrap();
        assert_eq!((found.namespace.as_str(), found.pod.as_str()), ("finance", "pricing-7f9c"));
        assert_eq!(found.container, Some(("app".into(), 2)));
        fs::create_dir_all(pod.join("sidecar")).unwrap();
        assert_eq!(find(dir.path(), UID, Some("abc")).unwrap().container, None);
        assert_eq!(find(dir.path(), "other", None), None);
        assert_eq!(find(&dir.path().join("absent"), UID, None), None);
    }

    #[test]
    fn the_target_of_a_link_identifies_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join(format!("a_b_{UID}"));
        for (name, id) in [("app", "1111"), ("sidecar", "2222")] {
            fs::create_dir_all(pod.join(name)).unwrap();
            let to = format!("/var/lib/docker/containers/{id}/{id}-json.log");
            std::os::unix::fs::symlink(to, pod.join(name).join("3.log")).unwrap();
        }
        let found = find(dir.path(), UID, Some("2222")).unwrap();
        assert_eq!(found.container, Some(("sidecar".into(), 3)));
    }
}
