//! Response bodies with stored records. The store holds JSON, which is embedded as it is: only the fields of the outer
//! object are read.

use std::fmt;

use hyper::body::Bytes;
use jiff::Timestamp;
use podopsy_model::Event;
use podopsy_recorder::incidents;
use podopsy_store::{Collection, StoreItem, StorePage, StoredEvent};
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// A page of the store: `{NAME: [items], "next": cursor or null, "unreadable": count}`.
pub struct PageBody {
    name: &'static str,
    items: Vec<ItemBody>,
    next: Option<String>,
    unreadable: u64,
}

impl Serialize for PageBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry(self.name, &self.items)?;
        map.serialize_entry("next", &self.next)?;
        map.serialize_entry("unreadable", &self.unreadable)?;
        map.end()
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum ItemBody {
    Profile(Value),
    Record(RecordBody),
}

/// A stored record with its id as the first field.
struct RecordBody {
    id: i64,
    fields: JsonFields,
}

impl Serialize for RecordBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.0.len() + 1))?;
        map.serialize_entry("id", &self.id)?;
        for (name, value) in &self.fields.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// The fields of a JSON object, in their order, with their values unparsed.
#[derive(Default)]
struct JsonFields(Vec<(String, Box<RawValue>)>);

impl JsonFields {
    /// Parses an object. Anything else has no fields.
    fn parse(json: &str) -> JsonFields {
        serde_json::from_str(json).unwrap_or_default()
    }

    /// Replaces the value of a field that is there.
    fn replace(&mut self, name: &str, value: &RawValue) {
        if let Some((_, old)) = self.0.iter_mut().find(|(field, _)| field == name) {
            *old = value.to_owned();
        }
    }
}

impl<'de> Deserialize<'de> for JsonFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JsonFields, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = JsonFields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonFields, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(JsonFields(fields))
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// The response for a page of the store, under the name of its collection.
pub fn page(collection: Collection, name: &'static str, page: &StorePage) -> PageBody {
    let now = Timestamp::now();
    PageBody {
        name,
        items: page.items.iter().map(|item| item_body(collection, item, now)).collect(),
        next: page.next.map(|next| next.to_string()),
        unreadable: page.unreadable,
    }
}

fn item_body(collection: Collection, item: &StoreItem, now: Timestamp) -> ItemBody {
    if collection == Collection::Profiles {
        return ItemBody::Profile(profile(item));
    }
    let mut fields = JsonFields::parse(&item.json().unwrap_or_default());
    if collection == Collection::Incidents && incidents::has_ended(item.end, now) {
        fields.replace("open", RawValue::FALSE);
    }
    ItemBody::Record(RecordBody { id: item.id, fields })
}

fn profile(item: &StoreItem) -> Value {
    json!({
        "id": item.id,
        "from": item.begin,
        "until": item.end,
        "namespace": item.namespace,
        "pod": item.pod,
        "container": item.container,
        "container_id": item.container_id,
        "bytes": item.body.len(),
        // Null: the profile was stored by a version that recorded no facts.
        "facts": item.facts.as_ref().and_then(|facts| serde_json::from_str::<Value>(facts).ok()),
    })
}

/// One line of the live stream: the event with the id that it is stored under, or null if it was not stored.
pub fn event_line(stored: &StoredEvent) -> Option<Bytes> {
    #[derive(Serialize)]
    struct StreamedEvent<'a> {
        id: Option<i64>,
        #[serde(flatten)]
        event: &'a Event,
    }

    let mut line = serde_json::to_vec(&StreamedEvent { id: stored.id, event: &stored.event }).ok()?;
    line.push(b'\n');
    Some(line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_record_keeps_its_fields_and_its_numbers_after_its_id() {
        let stored =
            r#"{"z":1.50,"open":true,"a":{"open":true,"n":18446744073709551615},"s":"\"open\":true"}"#;
        let mut fields = JsonFields::parse(stored);
        fields.replace("open", RawValue::FALSE);
        let record = ItemBody::Record(RecordBody { id: 7, fields });
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"id":7,"z":1.50,"open":false,"a":{"open":true,"n":18446744073709551615},"s":"\"open\":true"}"#
        );
        let empty = RecordBody { id: 7, fields: JsonFields::parse("not JSON") };
        assert_eq!(serde_json::to_string(&empty).unwrap(), r#"{"id":7}"#);
    }
}
