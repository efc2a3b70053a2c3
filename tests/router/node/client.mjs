// One scenario with the official client, unchanged: node client.mjs SCENARIO BASE_URL. Prints one JSON line.
import OpenAI from "openai";

const [scenario, baseURL] = process.argv.slice(2);
const messages = [{ role: "user", content: "hi" }];
const client = (options = {}) => new OpenAI({ baseURL, apiKey: "k", maxRetries: 0, ...options });
const chat = (extra = {}, options = {}) =>
  client(options).chat.completions.create({ model: "m", messages, ...extra });
const background = { defaultHeaders: { Prefer: "respond-async" } };
const tools = [{ type: "function", function: { name: "f", parameters: { type: "object" } } }];

async function failure(work) {
  try {
    await work();
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, code: error.code ?? null };
  }
  return null;
}

async function collect(stream) {
  const seen = [];
  const error = await failure(async () => {
    for await (const item of stream) seen.push(item.choices[0]?.delta?.content ?? "");
  });
  return { text: seen.join(""), error };
}

const scenarios = {
  chat: async () => (await chat()).choices[0].message.content,
  stream: async () => collect(await chat({ stream: true })),
  tools: async () => {
    const calls = [];
    for await (const item of await chat({ stream: true, tools }))
      for (const call of item.choices[0].delta.tool_calls ?? []) calls.push(call.function.arguments);
    return calls.join("");
  },
  responses: async () => (await client().responses.create({ model: "m", input: "hi" })).output_text,
  responsesStream: async () => {
    const types = [];
    for await (const event of await client().responses.create({ model: "m", input: "hi", stream: true }))
      types.push(event.type);
    return types;
  },
  models: async () => (await client().models.list()).data.map((model) => model.id),
  missing: () => failure(() => chat({ model: "nope" })),
  failure: () => failure(() => chat()),
  retried: async () => (await chat({}, { maxRetries: 4 })).choices[0].message.content,
  job: async () => (await chat({}, background)).choices[0].message.content,
  jobStream: async () => collect(await chat({ stream: true }, background)),
  timeout: () => failure(() => chat({}, { timeout: 10_000 })),
};

console.log(JSON.stringify(await scenarios[scenario]()));
