//! What librdkafka can do and the `rdkafka` crate has no wrapper for. No other module calls librdkafka directly.
//!
//! # Safety
//! - The client outlives every call: it is borrowed throughout, and librdkafka's handles are safe to share.
//! - Whatever librdkafka hands over is held by a guard that gives it back once, in reverse order of creation.
//! - Names, ids and counts are copied out while the event that owns them is still held.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    ptr,
    time::Duration,
};

use rdkafka::{ClientContext, bindings as native, client::Client, error::RDKafkaErrorCode};

/// Names brokers to a client beside those that it knows.
pub(super) fn add_brokers<C: ClientContext>(client: &Client<C>, brokers: &str) {
    let Ok(brokers) = CString::new(brokers) else { return };
    // SAFETY: the client's handle is valid while it is borrowed; the names are copied.
    unsafe { native::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
}

/// What DescribeTopics says of a topic.
pub(super) struct Description {
    /// As Kafka's own tools write it: URL-safe base64 without padding; empty if the brokers are too old to have ids.
    pub(super) id: String,
    pub(super) partitions: u32,
}

struct Queue(*mut native::rd_kafka_queue_t);
struct Topics(*mut native::rd_kafka_TopicCollection_t);
struct Event(*mut native::rd_kafka_event_t);

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_queue_new and given back only here.
        unsafe { native::rd_kafka_queue_destroy(self.0) }
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_TopicCollection_of_topic_names and given back only here.
        unsafe { native::rd_kafka_TopicCollection_destroy(self.0) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: handed over by rd_kafka_queue_poll and given back only here; librdkafka accepts null.
        unsafe { native::rd_kafka_event_destroy(self.0) }
    }
}

/// Asks the cluster for a topic's own id, which tells a topic from one of the same name made after it was deleted. Blocks
/// for at most `wait`.
pub(super) fn describe<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    wait: Duration,
) -> Result<Description, RDKafkaErrorCode> {
    let name = CString::new(topic).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
    let mut names = [name.as_ptr()];
    let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client's handle is valid while it is borrowed; the names are copied by the collection; a null option
    // pointer means the defaults; the request holds a reference of its own on the queue.
    let (_queue, event) = unsafe {
        let queue = Queue(native::rd_kafka_queue_new(client.native_ptr()));
        let topics = Topics(native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()));
        native::rd_kafka_DescribeTopics(client.native_ptr(), topics.0, ptr::null(), queue.0);
        let event = Event(native::rd_kafka_queue_poll(queue.0, wait_ms));
        (queue, event)
    };
    if event.0.is_null() {
        return Err(RDKafkaErrorCode::OperationTimedOut);
    }
    // SAFETY: the event is not null and stays alive until the end of this function.
    unsafe { first_description(event.0) }
}

/// # Safety
/// `event` is a live event.
unsafe fn first_description(event: *mut native::rd_kafka_event_t) -> Result<Description, RDKafkaErrorCode> {
    // SAFETY: each pointer is checked before it is used, belongs to the event and is not kept; librdkafka takes a null
    // error as "no error"; the id's text is written into the id itself and NUL-terminated.
    unsafe {
        check(native::rd_kafka_event_error(event))?;
        let result = native::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(RDKafkaErrorCode::Unknown);
        }
        let mut count = 0;
        let topics = native::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if topics.is_null() || count == 0 {
            return Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        }
        let topic = *topics;
        check(native::rd_kafka_error_code(native::rd_kafka_TopicDescription_error(topic)))?;
        let mut partitions = 0;
        native::rd_kafka_TopicDescription_partitions(topic, &mut partitions);
        let id = native::rd_kafka_TopicDescription_topic_id(topic);
        let text = if id.is_null() { ptr::null() } else { native::rd_kafka_Uuid_base64str(id) };
        let text = if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() };
        let known = text.bytes().any(|byte| byte != b'A');
        let id = if known { text.replace('+', "-").replace('/', "_") } else { String::new() };
        Ok(Description { id, partitions: u32::try_from(partitions).unwrap_or(u32::MAX) })
    }
}

fn check(code: native::rd_kafka_resp_err_t) -> Result<(), RDKafkaErrorCode> {
    match code.into() {
        RDKafkaErrorCode::NoError => Ok(()),
        code => Err(code),
    }
}
