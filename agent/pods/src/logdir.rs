//! Names without a runtime: `/var/log/pods/<namespace>_<pod>_<uid>/<container>/<attempt>.log`.
//!
//! The kubelet makes these folders, whichever runtime is below. Must not know: cgroups, CRI.

use std::fs;
use std::path::Path;

use super::text::field;

/// What the folder of a pod says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogDir {
    pub namespace: String,
    pub pod: String,
    /// The container that was asked for, and its attempt: known when a log is a link that carries the id
    /// (cri-dockerd), or when the pod has one container.
    pub container: Option<(String, u32)>,
}

/// Folders read at most: a node has some hundred pods, and leftovers.
const FOLDERS_MAX: usize = 10_000;

/// Looks a pod up by uid, and in it the container `id`.
pub fn find(root: &Path, uid: &str, id: Option<&str>) -> Option<LogDir> {
    let suffix = format!("_{uid}");
    let entries = fs::read_dir(root).ok()?;
    entries.flatten().take(FOLDERS_MAX).find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        // Neither namespaces nor pod names hold an underscore (RFC 1123), so this is not ambiguous.
        let (namespace, pod) = name.strip_suffix(&suffix)?.split_once('_')?;
        let container = id.and_then(|id| container(&entry.path(), id));
        Some(LogDir { namespace: field(namespace), pod: field(pod), container })
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
    // With several containers the folder does not say which is which, and a guess would pass for a fact.
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
    fn a_link_carries_the_id() {
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
