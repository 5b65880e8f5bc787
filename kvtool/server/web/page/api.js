// What the page asks of its server. Addresses are relative, so that it works below a proxy's path too.

const KEY = "kvtool-token";

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** `status` is 0 where there was no answer at all. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** The server has no such thing, or not for this token. */
  get isAbsent() {
    return [403, 404, 405, 501].includes(this.status);
  }
}

export async function request(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method, headers, signal, cache: "no-store", credentials: "omit",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, "The server cannot be reached.");
  }
  if (!answer.ok) throw new Refused(answer.status, await message(answer));
  return answer;
}

export const json = async (path, options) => (await request(path, options)).json();

async function message(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answered ${answer.status} ${answer.statusText}`.trim();
  }
}

/** The JSON of each server-sent event, until [DONE]. One that is an error is thrown. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await read(reader);
    if (done) throw new Refused(0, "The server broke the answer off.");
    const lines = (pending + value).split("\n");
    pending = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Refused(500, event.error.message);
      yield event;
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server broke the answer off.");
  }
}
