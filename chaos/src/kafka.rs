//! The oracle's own way into the log, and the generator's: nothing of lamina in between.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};

use crate::{
    event::{Event, Events, PARTITIONS},
    failure::{Doing, Failure, Outcome},
    history::History,
};

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("reconnect.backoff.max.ms", "1000").set("log_level", "2");
    config
}

/// Makes the topic, and returns once it can be written.
pub(crate) fn make_topic(brokers: &str, topic: &str, replicas: usize) -> Outcome {
    let doing = format!("make topic {topic}");
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().doing(&*doing)?;
    let replication = TopicReplication::Fixed(i32::try_from(replicas).unwrap_or(1));
    let new = NewTopic::new(topic, PARTITIONS, replication).set("message.timestamp.type", "LogAppendTime");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(&*doing)?;
    let made = runtime.block_on(admin.create_topics([&new], &AdminOptions::new())).doing(&*doing)?;
    for result in made {
        result.map_err(|(_, code)| code).doing(&*doing)?;
    }
    Ok(())
}

/// Reads the whole topic into the history, on a thread of its own, until dropped.
pub(crate) struct Reader {
    pub(crate) history: Arc<Mutex<History>>,
    broken: Arc<Mutex<Option<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    consumer: Arc<BaseConsumer>,
    topic: String,
}

impl Reader {
    pub(crate) fn start(brokers: &str, topic: &str) -> Outcome<Self> {
        let mut config = client(brokers);
        config
            .set("group.id", "lamina-chaos-oracle")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error");
        let consumer: BaseConsumer = config.create().doing("read Kafka")?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            assignment.add_partition_offset(topic, partition, Offset::Beginning).doing("read Kafka")?;
        }
        consumer.assign(&assignment).doing("read Kafka")?;
        let (consumer, history) = (Arc::new(consumer), Arc::new(Mutex::new(History::new())));
        let (broken, stop) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let reading = (Arc::clone(&consumer), Arc::clone(&history), Arc::clone(&broken), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let (consumer, history, broken, stop) = reading;
            if let Err(why) = read(&consumer, &history, &stop) {
                *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
            }
        });
        Ok(Self { history, broken, stop, thread: Some(thread), consumer, topic: topic.to_owned() })
    }

    /// # Errors
    /// If the log holds something that the oracle cannot count.
    pub(crate) fn check(&self) -> Outcome {
        match &*self.broken.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => Err(Failure::Broken(format!("the oracle cannot read the log: {why}"))),
            None => Ok(()),
        }
    }

    /// Reads up to the end that the brokers name now.
    pub(crate) fn catch_up(&self, within: Duration) -> Outcome {
        let begun = Instant::now();
        for partition in 0..PARTITIONS {
            let end = loop {
                match self.consumer.fetch_watermarks(&self.topic, partition, Duration::from_secs(5)) {
                    Ok((_, end)) => break end,
                    Err(error) if begun.elapsed() > within => return Err(error).doing("ask for the end of the log"),
                    Err(_) => crate::failure::pause(Duration::from_millis(200))?,
                }
            };
            let reached = || lock(&self.history).reaches(&[(partition, end)].into());
            crate::failure::until("the oracle has read the log", within, reached)?;
        }
        self.check()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(consumer: &BaseConsumer, history: &Mutex<History>, stop: &AtomicBool) -> Result<(), String> {
    while !stop.load(Ordering::Relaxed) {
        // Errors of connections pass.
        let mut record = consumer.poll(Duration::from_millis(100)).and_then(Result::ok);
        let mut history = lock(history);
        let mut taken = 0;
        while let Some(found) = record {
            let (partition, offset) = (found.partition(), found.offset());
            let event = Event::parse(found.payload().unwrap_or_default());
            let event = event.map_err(|why| format!("partition {partition} offset {offset}: {why}"))?;
            let appended_at = found.timestamp().to_millis().ok_or("a record has no append time")?;
            history.absorb(partition, offset, appended_at, event);
            taken += 1;
            // Others want the history too.
            record = if taken < 1_000 { consumer.poll(Duration::ZERO).and_then(Result::ok) } else { None };
        }
    }
    Ok(())
}

/// An event that Kafka has acknowledged.
pub(crate) struct Acknowledged {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) id: u64,
}

#[derive(Default)]
struct Deliveries {
    acknowledged: Mutex<VecDeque<Acknowledged>>,
    count: AtomicU64,
    failed: AtomicU64,
}

struct Context(Arc<Deliveries>);

impl ClientContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, id: Self::DeliveryOpaque) {
        match result {
            Ok(record) => {
                let (partition, offset) = (record.partition(), record.offset());
                lock(&self.0.acknowledged).push_back(Acknowledged { partition, offset, id: *id });
                self.0.count.fetch_add(1, Ordering::Relaxed);
            }
            // It may be in the log all the same; the oracle reads what is.
            Err(_) => {
                self.0.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Sends events at a steady rate, on a thread of its own, until stopped.
pub(crate) struct Generator {
    deliveries: Arc<Deliveries>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Generator {
    pub(crate) fn start(brokers: &str, topic: &str, rate: u32, mut events: Events) -> Outcome<Self> {
        let (producer, deliveries) = producer(brokers)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, topic) = (Arc::clone(&stop), topic.to_owned());
        let thread = std::thread::spawn(move || {
            let begun = Instant::now();
            let mut sent = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as u64;
                let now = chrono::Utc::now().timestamp_millis();
                // What a full queue keeps from being sent is not made up for.
                while sent < due {
                    sent += 1;
                    send(&producer, &topic, &events.next(now));
                }
                producer.poll(Duration::from_millis(10));
            }
            let _ = producer.flush(Duration::from_secs(70));
        });
        Ok(Self { deliveries, stop, thread: Some(thread) })
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.deliveries.count.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.deliveries.failed.load(Ordering::Relaxed)
    }

    /// What was acknowledged and not taken yet.
    pub(crate) fn take(&self) -> VecDeque<Acknowledged> {
        std::mem::take(&mut *lock(&self.deliveries.acknowledged))
    }

    /// Sends no more, and waits for what is under way.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.stop();
    }
}

fn producer(brokers: &str) -> Outcome<(BaseProducer<Context>, Arc<Deliveries>)> {
    let deliveries = Arc::new(Deliveries::default());
    let mut config = client(brokers);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "20")
        .set("compression.type", "lz4")
        .set("message.timeout.ms", "60000")
        .set("queue.buffering.max.messages", "400000")
        .set("partitioner", "murmur2_random");
    let producer = config.create_with_context(Context(Arc::clone(&deliveries))).doing("write to Kafka")?;
    Ok((producer, deliveries))
}

/// Sends events; returns once all are acknowledged.
pub(crate) fn send_all(brokers: &str, topic: &str, events: Vec<Event>) -> Outcome {
    let (producer, deliveries) = producer(brokers)?;
    for event in &events {
        send(&producer, topic, event);
    }
    producer.flush(Duration::from_secs(60)).doing("write to Kafka")?;
    match deliveries.count.load(Ordering::Relaxed) == events.len() as u64 {
        true => Ok(()),
        false => Err(Failure::Broken("Kafka did not acknowledge every event".to_owned())),
    }
}

fn send(producer: &BaseProducer<Context>, topic: &str, event: &Event) {
    let (key, payload) = (event.key(), event.payload());
    let record = BaseRecord::with_opaque_to(topic, Box::new(event.id)).key(&key).payload(&payload);
    // A full queue is the only thing that can refuse it; then the event was never sent.
    let _ = producer.send(record);
}
