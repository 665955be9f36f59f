// Browsers start no worker from a file. Where the site is read from a folder, the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inner = frame.contentWindow
      this.inner.postMessage = data =>
        setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data })))
      this.inner.importScripts = (...urls) =>
        urls.reduce((done, next) => done.then(() => this.run(next)), Promise.resolve())
      this.run(url).then(() => {
        this.waiting.forEach(data => this.deliver(data))
        this.waiting = null
      })
    }

    run(url) {
      const script = this.inner.document.createElement("script")
      script.src = new URL(url, location.href)
      return new Promise((resolve, reject) => {
        script.onload = resolve
        script.onerror = reject
        this.inner.document.body.append(script)
      })
    }

    deliver(data) {
      this.inner.dispatchEvent(new MessageEvent("message", { data }))
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.deliver(data)
    }

    terminate() {}
  }
  window.Worker = window.IFrameWorker = IFrameWorker
}
