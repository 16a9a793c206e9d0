// Reads sipsim-relay's events out of Kafka: each once, a call's in order, and, in binary mode, only what SIPSIM signed.
//
//     npm install kafkajs cloudevents
//     KAFKA=127.0.0.1:9092 TOPICS=sipsim.call,sipsim.sms SECRET_FILE=secret node kafka.js
const crypto = require("crypto");
const fs = require("fs");
const { Kafka, logLevel } = require("kafkajs");
const { Kafka: cloudevents } = require("cloudevents");
const { once } = require("./handled");

const secret = fs.readFileSync(process.env.SECRET_FILE, "utf8").trim();

function signedBySipsim(headers, body) {
  const expected = crypto.createHmac("sha256", secret).update(`${headers["x-webhook-timestamp"]}.`).update(body).digest();
  const given = Buffer.from(headers["x-webhook-signature"] || "", "hex");
  // timingSafeEqual throws on unequal lengths.
  return given.length === expected.length && crypto.timingSafeEqual(given, expected);
}

function handle(event) {
  console.log(event.id, event.type, event.subject || "-");
}

async function take({ topic, partition, message }) {
  // kafkajs gives headers as buffers.
  const headers = Object.fromEntries(Object.entries(message.headers).map(([name, value]) => [name, value.toString()]));
  // Binary mode: the value is what SIPSIM sent, to the byte. A structured envelope does not keep the white space around it.
  if (headers.ce_id && !signedBySipsim(headers, message.value)) {
    console.error(`not from SIPSIM: ${topic}[${partition}]@${message.offset}`);
    return;
  }
  const binary = headers.ce_id && headers["content-type"] !== "application/json"; // What is not JSON stays bytes.
  await once(cloudevents.toEvent({ ...message, headers, value: binary ? message.value : message.value.toString() }), handle);
}

async function main() {
  const kafka = new Kafka({ brokers: process.env.KAFKA.split(","), logLevel: logLevel.WARN });
  const consumer = kafka.consumer({ groupId: process.env.GROUP || "example" });
  await consumer.connect();
  await consumer.subscribe({ topics: process.env.TOPICS.split(","), fromBeginning: true });
  // A call is a key, a key is a partition, and eachMessage is awaited within a partition: that keeps the order. A message whose handling throws is
  // tried again, and offsets are committed for what was handled.
  await consumer.run({ eachMessage: take });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
