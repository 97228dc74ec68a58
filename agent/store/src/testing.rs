//! Files as earlier versions of podopsy wrote them, for tests.

use std::path::Path;

use podopsy_model::Event;
use rusqlite::{Connection, Result};

use crate::{FILE, row, schema};

/// The id of the event in [`write_version_1`].
pub const ID: i64 = 77;

/// Writes a history of version 1 with one event into `folder`. The event needs a pod.
pub fn write_version_1(folder: &Path, event: &Event) -> Result<()> {
    let mut connection = Connection::open(folder.join(FILE))?;
    connection.pragma_update(None, "auto_vacuum", "incremental")?;
    schema::migrate(&mut connection, 0, &schema::STEPS[..1])?;
    let pod = event.pod.as_ref().expect("an event of a pod");
    let (body, time) = (serde_json::to_vec(event).expect("an event is JSON"), row::ns(event.time));
    let share = row::Share::of(event.kind) as i64;
    connection.execute(
        "INSERT INTO record (id, shelf, share, kind, begin_ns, end_ns, namespace, pod, bytes, body) \
         VALUES (?1, 1, ?2, ?3, ?4, ?4, ?5, ?6, 300, ?7)",
        (ID, share, event.kind.as_str(), time, &pod.namespace, &pod.name, body),
    )?;
    Ok(())
}
