// Reads sipsim-relay's events out of RabbitMQ: each once, and in the order of the queue. The relay keeps a call's order within a routing
// key, so for order across its events it has `routing_key = "sipsim.{group}"`.
//
//     npm install amqplib cloudevents
//     RABBITMQ=amqp://guest:guest@127.0.0.1:5672/%2f QUEUE=crm.calls BINDINGS=sipsim.call node rabbitmq.js
const amqp = require("amqplib");
const { CloudEvent } = require("cloudevents");
const { once } = require("./handled");

function handle(event) {
  console.log(event.id, event.type, event.subject || "-");
}

async function main() {
  const { RABBITMQ, QUEUE, BINDINGS, EXCHANGE = "sipsim" } = process.env;
  const connection = await amqp.connect(RABBITMQ);
  const channel = await connection.createChannel();
  await channel.assertExchange(EXCHANGE, "topic", { durable: true });
  // One consumer at a time keeps the order; a second one waits, and takes over when the first is gone.
  await channel.assertQueue(QUEUE, { durable: true, arguments: { "x-queue-type": "quorum", "x-single-active-consumer": true } });
  for (const key of BINDINGS.split(",")) await channel.bindQueue(QUEUE, EXCHANGE, key);
  await channel.prefetch(100);

  let last = Promise.resolve(); // amqplib does not wait for one message before it hands over the next, so we do.
  await channel.consume(QUEUE, (message) => {
    last = last.then(async () => {
      const event = new CloudEvent(JSON.parse(message.content.toString())); // RabbitMQ's messages are always structured.
      await once(event, handle);
      channel.ack(message); // Only now. Never nack with requeue: it comes back behind others.
    });
    last.catch((error) => {
      console.error(error);
      process.exit(1); // What is not acknowledged comes again, in order.
    });
  });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
