// Publishes orders for orderd: one JSON object per line of standard input.
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { connect } from "amqplib";

const url = process.env.AMQP_URL ?? "amqp://guest:guest@127.0.0.1:5672/%2F";
const waits = [1, 2, 5, 10]; // seconds between attempts to reach the broker
const returned = new Set(); // ids of orders for which no queue is bound
let channel;

async function open() {
  const connection = await connect(url);
  const opened = await connection.createConfirmChannel();
  // Either is emitted when the connection is lost; the pending publish fails, and the next attempt connects again.
  connection.on("error", (error) => console.error(error.message));
  connection.on("close", () => (channel = undefined));
  opened.on("error", (error) => console.error(error.message));
  opened.on("close", () => (channel = undefined));
  opened.on("return", (message) => returned.add(message.properties.messageId));
  return opened;
}

// Resolves once the broker has confirmed the order: only then is it safe.
async function tryPublish(order, body) {
  channel ??= await open();
  const id = String(order.id);
  const routingKey = order.priority ? "order.priority.created" : "order.normal.created";
  const options = { messageId: id, contentType: "application/json", persistent: true, mandatory: true };
  await new Promise((resolve, reject) => {
    channel.publish("orders", routingKey, Buffer.from(body), options, (error) => (error ? reject(error) : resolve()));
  });
  if (returned.delete(id)) throw new Error("no queue is bound for it");
}

// An order that is published again has the same id, and orderd processes it once.
async function publish(order, body) {
  for (const wait of [...waits, undefined]) {
    try {
      return await tryPublish(order, body);
    } catch (error) {
      if (wait === undefined) throw error;
      console.error(`${order.id} is not confirmed: ${error.message}; next attempt in ${wait} s`);
      await sleep(wait * 1000);
    }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  await publish(order, line);
  console.log("confirmed:", order.id);
}
await channel?.connection.close();
