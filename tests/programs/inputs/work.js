// Asynchronous files, worker threads, child processes, a server on loopback.
const fs = require('fs/promises');
const http = require('http');
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const { execFile, fork, spawn } = require('child_process');
const { promisify } = require('util');

async function files() {
  await fs.mkdir('many');
  await Promise.all([...Array(500).keys()].map(async (n) => {
    await fs.writeFile(`many/${n}`, `content ${n}`);
    await fs.appendFile(`many/${n}`, '!');
  }));
  const texts = await Promise.all([...Array(500).keys()].map((n) => fs.readFile(`many/${n}`, 'utf8')));
  console.log('files:', texts.join('').length, (await fs.readdir('many')).length);
  await fs.rm('many', { recursive: true });
}

function worker(number) {
  return new Promise((resolve, reject) => {
    const it = new Worker(__filename, { workerData: number });
    it.on('message', resolve);
    it.on('error', reject);
  });
}

async function workers() {
  const answers = await Promise.all([1, 2, 3, 4, 5, 6].map(worker));
  console.log('workers:', answers.join(' '));
}

async function children() {
  const run = promisify(execFile);
  const outputs = await Promise.all([...Array(20).keys()].map((n) => run('sh', ['-c', `echo ${n}`])));
  console.log('children:', outputs.map(({ stdout }) => stdout.trim()).join(' '));
  const child = fork(__filename, ['child']);
  const answer = await new Promise((resolve) => {
    child.on('message', resolve);
    child.send({ question: 6 });
  });
  console.log('forked:', answer.answer);
  const ended = await new Promise((resolve) => {
    const sleeper = spawn('sleep', ['1000']);
    sleeper.on('exit', (code, signal) => resolve(signal));
    sleeper.kill();
  });
  console.log('killed:', ended);
}

async function server() {
  const it = http.createServer((request, response) => response.end(`you asked for ${request.url}`));
  await new Promise((resolve) => it.listen(0, '127.0.0.1', resolve));
  const { port } = it.address();
  const texts = await Promise.all([...Array(50).keys()].map(async (n) => {
    const response = await fetch(`http://127.0.0.1:${port}/${n}`);
    return response.text();
  }));
  console.log('server:', texts.length, texts[49]);
  it.close();
  it.closeAllConnections();
}

async function main() {
  process.on('exit', (code) => console.log('exit', code));
  await files();
  await workers();
  await children();
  await server();
  console.log('all done');
}

if (!isMainThread) {
  let sum = 0;
  for (let n = 0; n < workerData * 1000000; n++) sum += n % 7;
  parentPort.postMessage(sum);
} else if (process.argv[2] === 'child') {
  process.on('message', ({ question }) => {
    process.send({ answer: question * 7 });
    process.disconnect();
  });
} else {
  main();
}
